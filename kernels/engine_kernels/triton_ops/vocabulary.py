"""Launcher of the softmax over a vocabulary; kernel in device/vocabulary.py."""

from __future__ import annotations

from math import log

import torch

from engine_kernels.gpu_ops import Int8, Matrix, stored
from engine_kernels.triton_ops.device import vocabulary as kernels
from engine_kernels.triton_ops.launch import Launcher
from engine_kernels.triton_ops.projections import DEPTH, DOT
from engine_kernels.triton_ops.tiles import choose

PARTS = 128  # the most parts a vocabulary is cut into


def score_words(
    launch: Launcher, x: torch.Tensor, weight: Matrix, bias: torch.Tensor | None, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """log Σ exp(logits) and the target's logit, 0 where it is -1, both [rows] float32, of logits = x · weightᵀ + bias.

    x [rows, depth], weight [words, depth], bias [words], targets [rows] int64.
    """
    rows, (words, depth) = len(x), weight.shape
    tile = choose(launch.tiles.project, rows, weight.dtype.itemsize)
    row_tiles = -(-rows // tile.rows)
    parts = max(1, min(PARTS // row_tiles, -(-words // tile.keys)))
    chunk = -(-words // (parts * tile.keys)) * tile.keys
    parts = -(-words // chunk)
    peaks, totals, picked = (torch.empty((parts, rows), dtype=torch.float32, device=x.device) for _ in range(3))
    block = DEPTH[weight.dtype.itemsize]
    launch(
        kernels.score_words,
        (row_tiles, parts),
        tile,
        x,
        *stored(weight),
        bias,
        targets,
        peaks,
        totals,
        picked,
        rows,
        words,
        chunk,
        depth,
        BM=tile.rows,
        BN=tile.keys,
        BK=block,
        DOT=DOT[weight.dtype],
        INT8=isinstance(weight, Int8),
        BIAS=bias is not None,
        WHOLE=depth % block == 0,
    )
    peak = peaks.amax(0)
    total = (totals * torch.exp2(peaks - peak)).sum(0)
    return (peak + torch.log2(total)) * log(2), picked.sum(0)
