"""Launcher of attention over whole sequences; kernel in device/bidirectional.py."""

from __future__ import annotations

import numpy as np
import torch

from engine_kernels.gpu_ops import Pair, Sequences, row_tiles
from engine_kernels.triton_ops.attention import padded
from engine_kernels.triton_ops.device import bidirectional as kernels
from engine_kernels.triton_ops.launch import Launcher
from engine_kernels.triton_ops.tiles import choose


def attend_bidirectional(
    launch: Launcher, query: torch.Tensor, new: Pair, sequences: Sequences, lengths: np.ndarray, out: torch.Tensor
) -> None:
    """Fill out [rows, H, D] from query, keys and values [rows, H, D] of sequences whose lengths [sequences] the host knows too."""
    _, heads, head_dim = query.shape
    tile = choose(launch.tiles.bidirectional, int(lengths.max()), query.element_size())
    tile_sequence, tile_row = row_tiles(sequences, lengths, tile.rows)
    launch(
        kernels.attend_bidirectional,
        (len(tile_row), heads),
        tile,
        query,
        *new,
        tile_sequence,
        tile_row,
        sequences.first_rows,
        sequences.lengths,
        out,
        D=head_dim,
        DP=padded(head_dim),
        BM=tile.rows,
        BN=tile.keys,
    )
