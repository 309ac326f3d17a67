"""Attention launchers: packed rows and rings in, attended rows out; shapes in ops.py, kernels in device/attention.py."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from engine_kernels.gpu_ops import Sequences, Tables, row_tiles
from engine_kernels.ops import Visibility
from engine_kernels.triton_ops.device import attention as kernels
from engine_kernels.triton_ops.launch import Launcher
from engine_kernels.triton_ops.tiles import Tile, choose, splits


@dataclass(frozen=True)
class Constants:
    """What attend_constants made of the packed rows: states of the persistent vectors per split, scores by distance."""

    outs: torch.Tensor  # [splits, H, rows, D] float32
    peaks: torch.Tensor  # [splits, H, rows] float32
    totals: torch.Tensor
    scores: torch.Tensor | None  # [H, rows, 16 · pitch], nearness falling from W - 1
    splits: int
    pitch: int


def padded(head_dim: int) -> int:
    """The head size as the kernels' blocks have it."""
    return max(16, 1 << (head_dim - 1).bit_length())


def attend_constants(launch: Launcher, query: torch.Tensor, tables: Tables, see: Visibility) -> Constants:
    """States and scores of query [rows, H, D] against everything of the layer that no token changes."""
    rows, heads, head_dim = query.shape
    tile = choose(launch.tiles.constants, rows, query.element_size())
    persistent = 0 if tables.persistent_keys is None else tables.persistent_keys.shape[1]
    parts = splits(rows, persistent, tile)
    chunk = -(-persistent // (max(parts, 1) * tile.keys)) * tile.keys
    parts = -(-persistent // chunk) if persistent else 0
    distance_tables = 0 if tables.distances is None else tables.distances.shape[0]
    pitch = -(-see.reach // 16)
    new = query.new_empty
    outs = new((parts, heads, rows, head_dim), dtype=torch.float32)
    peaks = new((parts, heads, rows), dtype=torch.float32)
    totals = new((parts, heads, rows), dtype=torch.float32)
    scores = new((heads, rows, 16 * pitch)) if distance_tables else None
    grid = (-(-rows // tile.rows), parts + (-(-see.reach // tile.keys) if distance_tables else 0), heads)
    whole = persistent % tile.keys == 0
    described = launch.tiles.descriptors and whole and persistent > 0 and head_dim == padded(head_dim) and query.element_size() == 2
    launch(
        kernels.attend_constants,
        grid,
        tile,
        query,
        tables.position_bias,
        _described(tables.persistent_keys, tile) if described else tables.persistent_keys,
        _described(tables.persistent_values, tile) if described else tables.persistent_values,
        tables.distances,
        outs,
        peaks,
        totals,
        scores,
        rows,
        persistent,
        chunk,
        parts,
        distance_tables,
        see.reach,
        pitch,
        D=head_dim,
        DP=padded(head_dim),
        BM=tile.rows,
        BN=tile.keys,
        BIASED=tables.position_bias is not None,
        WHOLE=whole,
        DESCRIBED=described,
    )
    return Constants(outs, peaks, totals, scores, parts, pitch)


def _described(vectors: torch.Tensor | None, tile: Tile) -> TensorDescriptor:
    """[H, N, D] for the tensor memory unit, as [H · N, D] in blocks of the tile's keys."""
    assert vectors is not None
    head_dim = vectors.shape[2]
    return TensorDescriptor(vectors, [vectors.shape[0] * vectors.shape[1], head_dim], [head_dim, 1], [tile.keys, head_dim])


def attend_rows(
    launch: Launcher,
    query: torch.Tensor,
    rings: tuple[torch.Tensor, torch.Tensor],
    new: tuple[torch.Tensor, torch.Tensor],
    constants: Constants,
    sequences: Sequences,
    lengths: np.ndarray,
    tables: Tables,
    see: Visibility,
    out: torch.Tensor,
) -> None:
    """Fill out [rows, H, D] from query and new keys and values [rows, H, D] and rings [slots, H, capacity, D]."""
    rows, heads, head_dim = query.shape
    tile = choose(launch.tiles.rows, int(lengths.max()), query.element_size())
    tile_sequence, tile_row = row_tiles(lengths, tile.rows, query.device)
    launch(
        kernels.attend_rows,
        (len(tile_row), heads),
        tile,
        query,
        tables.content_bias,
        *rings,
        *new,
        *_states(constants),
        tables.spans,
        tile_sequence,
        tile_row,
        sequences.first_rows,
        sequences.lengths,
        sequences.slots,
        sequences.offsets,
        sequences.positions,
        out,
        rows,
        rings[0].shape[2],
        *_sees(see),
        constants.pitch,
        constants.splits,
        float(tables.span_ramp),
        BM=tile.rows,
        BN=tile.keys,
        **_variant(tables, head_dim),
    )


def attend_ring(
    launch: Launcher,
    query: torch.Tensor,
    rings: tuple[torch.Tensor, torch.Tensor],
    constants: Constants,
    sequences: Sequences,
    tables: Tables,
    see: Visibility,
    out: torch.Tensor,
) -> None:
    """Fill the only row of each of `sequences` in out [rows, H, D]; the rings [slots, H, capacity, D] hold every key it sees."""
    rows, heads, head_dim = query.shape
    tile = choose(launch.tiles.ring, rows, query.element_size())
    launch(
        kernels.attend_ring,
        (len(sequences.slots), heads),
        tile,
        query,
        tables.content_bias,
        *rings,
        *_states(constants),
        tables.spans,
        sequences.first_rows,
        sequences.slots,
        sequences.positions,
        out,
        rows,
        rings[0].shape[2],
        *_sees(see),
        constants.pitch,
        constants.splits,
        float(tables.span_ramp),
        BN=tile.keys,
        **_variant(tables, head_dim),
    )


def _states(constants: Constants) -> tuple[torch.Tensor | None, ...]:
    return constants.outs, constants.peaks, constants.totals, constants.scores


def _sees(see: Visibility) -> tuple[int, ...]:
    return see.window, see.segment, see.reach, see.first, int(see.attended_zeros)


def _variant(tables: Tables, head_dim: int) -> dict[str, int | bool]:
    return {
        "D": head_dim,
        "DP": padded(head_dim),
        "BIASED": tables.content_bias is not None,
        "RELATIVE": tables.distances is not None,
        "SPANS": tables.spans is not None,
    }
