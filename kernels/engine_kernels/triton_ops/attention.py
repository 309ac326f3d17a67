"""Attention launchers: packed rows and rings in, attended rows out; shapes in ops.py, kernels in device/attention.py."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from engine_kernels.gpu_ops import Int8, Sequences, Tables, row_tiles, stored
from engine_kernels.ops import Visibility
from engine_kernels.triton_ops.device import attention as kernels
from engine_kernels.triton_ops.device import ring
from engine_kernels.triton_ops.launch import Launcher
from engine_kernels.triton_ops.tiles import PARTS, Tile, choose, splits, window_parts

MERGE = Tile(1, PARTS, 1, 1)


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


def attend_constants(launch: Launcher, query: torch.Tensor, tables: Tables, visibility: Visibility) -> Constants:
    """States and scores of query [rows, H, D] against everything of the layer that no token changes."""
    rows, heads, head_dim = query.shape
    tile = choose(launch.tiles.constants, rows, query.element_size())
    persistent = 0 if tables.persistent_keys is None else tables.persistent_keys.shape[1]
    parts = splits(rows, persistent, tile)
    chunk = -(-persistent // (max(parts, 1) * tile.keys)) * tile.keys
    parts = -(-persistent // chunk) if persistent else 0
    distance_tables = 0 if tables.distances is None else tables.distances.shape[0]
    pitch = -(-visibility.reach // 16)
    new = query.new_empty
    outs = new((parts, heads, rows, head_dim), dtype=torch.float32)
    peaks = new((parts, heads, rows), dtype=torch.float32)
    totals = new((parts, heads, rows), dtype=torch.float32)
    scores = new((heads, rows, 16 * pitch)) if distance_tables else None
    grid = (-(-rows // tile.rows), parts + (-(-visibility.reach // tile.keys) if distance_tables else 0), heads)
    (keys, key_scale), (values, value_scale) = stored(tables.persistent_keys), stored(tables.persistent_values)
    distances, distance_scale = stored(tables.distances)
    absent, no_scale = query, totals  # never read where there are none, but a kernel is compiled with all it names
    whole = persistent % tile.keys == 0
    described = launch.tiles.descriptors and whole and persistent > 0 and head_dim == padded(head_dim) and query.element_size() == 2
    launch(
        kernels.attend_constants,
        grid,
        tile,
        query,
        tables.position_bias,
        _described(keys, tile) if described else _or(keys, absent),
        _described(values, tile) if described else _or(values, absent),
        _or(distances, absent),
        _or(key_scale, no_scale),
        _or(value_scale, no_scale),
        _or(distance_scale, no_scale),
        outs,
        peaks,
        totals,
        _or(scores, absent),
        rows,
        persistent,
        chunk,
        parts,
        distance_tables,
        visibility.reach,
        pitch,
        D=head_dim,
        DP=padded(head_dim),
        BM=tile.rows,
        BN=tile.keys,
        BIASED=tables.position_bias is not None,
        INT8=isinstance(tables.persistent_keys, Int8) or isinstance(tables.distances, Int8),
        WHOLE=whole,
        DESCRIBED=described,
    )
    return Constants(outs, peaks, totals, scores, parts, pitch)


def _or(tensor: torch.Tensor | None, absent: torch.Tensor) -> torch.Tensor:
    return absent if tensor is None else tensor


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
    visibility: Visibility,
    out: torch.Tensor,
) -> None:
    """Fill out [rows, H, D] from query and new keys and values [rows, H, D] and rings [slots, H, capacity, D]."""
    rows, heads, head_dim = query.shape
    tile = choose(launch.tiles.rows, int(lengths.max()), query.element_size())
    tile_sequence, tile_row = row_tiles(sequences, lengths, tile.rows)
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
        *_integers(visibility),
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
    visibility: Visibility,
    out: torch.Tensor,
) -> None:
    """Fill the only row of each of `sequences` in out [rows, H, D]; the rings [slots, H, capacity, D] hold every key it sees."""
    rows, heads, head_dim = query.shape
    tile, count = choose(launch.tiles.ring, rows, query.element_size()), len(sequences.slots)
    parts = window_parts(max(count * heads, 1), visibility.reach)
    chunk = -(-visibility.reach // (parts * tile.keys)) * tile.keys
    parts = -(-visibility.reach // chunk)
    split, states = parts > 1, (out, None, None, None)
    if split:
        shape = (parts, count, heads)
        states = (query.new_empty((*shape, head_dim), dtype=torch.float32), *query.new_empty((3, *shape), dtype=torch.float32))
    launch(
        ring.attend_ring,
        (count, heads, parts),
        tile,
        query,
        tables.content_bias,
        *rings,
        *_states(constants),
        tables.spans,
        sequences.first_rows,
        sequences.slots,
        sequences.positions,
        *states,
        rows,
        rings[0].shape[2],
        *_integers(visibility),
        constants.pitch,
        constants.splits,
        float(tables.span_ramp),
        chunk,
        BN=tile.keys,
        SPLIT=split,
        **_variant(tables, head_dim),
    )
    if split:
        launch(
            ring.merge_parts,
            (count, heads),
            MERGE,
            *states,
            sequences.first_rows,
            out,
            parts,
            D=head_dim,
            DP=padded(head_dim),
            PARTS=PARTS,
            SPANS=tables.spans is not None,
        )


def _states(constants: Constants) -> tuple[torch.Tensor | None, ...]:
    return constants.outs, constants.peaks, constants.totals, constants.scores


def _integers(visibility: Visibility) -> tuple[int, ...]:
    return visibility.window, visibility.segment, visibility.reach, visibility.first_distance, int(visibility.attended_zeros)


def _variant(tables: Tables, head_dim: int) -> dict[str, int | bool]:
    return {
        "D": head_dim,
        "DP": padded(head_dim),
        "BIASED": tables.content_bias is not None,
        "RELATIVE": tables.distances is not None,
        "SPANS": tables.spans is not None,
    }
