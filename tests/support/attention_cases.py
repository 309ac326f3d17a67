"""Attention of random rows: what goes into an operation, and the float64 oracle's answer for every row and head of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from engine_kernels import reference
from engine_kernels.ops import AttentionTables, Visibility
from engine_kernels.testing import assert_close
from tests.oracle.attention import _head as one_head

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Case:
    """Sizes and variants of one call; relative: none, own, or one table shared by the heads and no biases."""

    batch: int = 2
    heads: int = 3
    rows: int = 5
    head_dim: int = 8
    persistent: int = 17
    window: int = 7
    segment: int = 0
    first_distance: int = 0
    attended_zeros: bool = True
    relative: str = "own"
    spans: bool = False
    dtype: str = "float32"
    positions: tuple[int, ...] | None = None  # of row 0; None = any
    capacity: int = 0  # slots of a ring beyond the window

    @property
    def visibility(self) -> Visibility:
        reach = self.window + max(self.segment - 1, 0)
        return Visibility(self.window, self.segment, reach, self.first_distance, self.attended_zeros)


@dataclass(frozen=True)
class Inputs:
    """The tensors of a case as ops.attend takes them, already rounded to its dtype."""

    query: torch.Tensor  # [B, H, T, D]
    keys: torch.Tensor  # [B, H, W + T, D]
    values: torch.Tensor
    positions: torch.Tensor  # [B]
    tables: AttentionTables[torch.Tensor]


def draw(case: Case, seed: int = 0) -> Inputs:
    """Random inputs whose scores differ by several units; positions on both sides of the reach."""
    rng = np.random.default_rng(seed)
    dtype, reach = DTYPES[case.dtype], case.visibility.reach
    heads, head_dim = case.heads, case.head_dim

    def normal(*shape: int, spread: float = 1.0, kind: torch.dtype = dtype) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal(shape) * spread).to(device=DEVICE, dtype=kind)

    own = case.relative == "own"
    tables = AttentionTables(
        distances=None if case.relative == "none" else normal(heads if own else 1, reach, head_dim),
        content_bias=normal(heads, head_dim, spread=0.3, kind=torch.float32) if own else None,
        position_bias=normal(heads, head_dim, spread=0.3, kind=torch.float32) if own else None,
        persistent_keys=normal(heads, case.persistent, head_dim, spread=head_dim**-0.5) if case.persistent else None,
        persistent_values=normal(heads, case.persistent, head_dim) if case.persistent else None,
        spans=torch.from_numpy(rng.uniform(0, reach, heads).astype(np.float32)).to(DEVICE) if case.spans else None,
        span_ramp=3 if case.spans else 0,
    )
    positions = rng.integers(0, 2 * reach + 3, case.batch) if case.positions is None else np.array(case.positions)
    return Inputs(
        query=normal(case.batch, heads, case.rows, head_dim),
        keys=normal(case.batch, heads, reach + case.rows, head_dim),
        values=normal(case.batch, heads, reach + case.rows, head_dim),
        positions=torch.from_numpy(positions.astype(np.int64)).to(DEVICE),
        tables=tables,
    )


def exact(case: Case, inputs: Inputs) -> np.ndarray:
    """[B, H, T, D] by the oracle's loop over one row and one head at a time."""
    query, keys, values = (double(tensor) for tensor in (inputs.query, inputs.keys, inputs.values))
    tables, visibility = inputs.tables, case.visibility
    weights = {name: double(tensor) for name in WEIGHTS if (tensor := getattr(tables, name)) is not None}
    if case.persistent:
        weights["persistent_values"] /= np.sqrt(case.persistent)
    settings: dict[str, Any] = {
        "head_dim": case.head_dim,
        "position": {"kind": "Table"} if tables.content_bias is not None else None,
        "persistent": case.persistent,
        "spans": None if tables.spans is None else double(tables.spans),
        "span_ramp": tables.span_ramp,
        "scaled": False,
    }
    named = {f"layer.{name}": array for name, array in weights.items()}
    distances = (
        None if tables.distances is None else np.broadcast_to(double(tables.distances), (case.heads, visibility.reach, case.head_dim))
    )
    out = np.empty(query.shape)
    for b, h, t in np.ndindex(*query.shape[:3]):
        back = seen(visibility, int(inputs.positions[b]) + t)
        at = [visibility.reach + t - distance for distance in back]
        table = None if distances is None else distances[h, [distance - visibility.first_distance for distance in back]]
        out[b, h, t] = one_head(settings, named, "layer", h, query[b, h, t], back, keys[b, h, at], values[b, h, at], table)
    return out


WEIGHTS = ("content_bias", "position_bias", "persistent_keys", "persistent_values")


def seen(visibility: Visibility, position: int) -> list[int]:
    """The distances a row at `position` sees."""
    count = visibility.window + (position % visibility.segment if visibility.segment else 0)
    distances = range(visibility.first_distance, visibility.first_distance + count)
    return [distance for distance in distances if visibility.attended_zeros or distance <= position]


def ring(case: Case, rows: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The W rows [B, H, W, D], oldest first, that a row at positions [B] sees, as a ring with NaN in the slots it must not read."""
    capacity = case.visibility.reach + case.capacity
    slots = torch.full((*rows.shape[:2], capacity, rows.shape[3]), torch.nan, dtype=rows.dtype, device=rows.device)
    near = torch.arange(case.visibility.reach, device=rows.device)
    places = (positions[:, None] - case.first_distance - near) % capacity  # [B, W], the newest first
    sequences = torch.arange(len(positions), device=rows.device)[:, None]
    slots.transpose(1, 2)[sequences, places] = rows[:, :, : case.visibility.reach].flip(2).transpose(1, 2)
    return slots


def one_row(case: Case, inputs: Inputs) -> tuple[Case, Inputs]:
    """The last row alone, as ops.attend takes it: the keys it can reach, and then its own."""
    rows = case.visibility.reach + 1
    single = replace(case, rows=1)
    moved = inputs.positions + case.rows - 1
    return single, Inputs(inputs.query[:, :, -1:], inputs.keys[:, :, -rows:], inputs.values[:, :, -rows:], moved, inputs.tables)


def check(case: Case, result: torch.Tensor, inputs: Inputs, name: str) -> None:
    """The result [B, H, T, D] by the one tolerance rule, p = engine_kernels.reference in the same dtype."""
    plain = reference.attend(inputs.query, inputs.keys, inputs.values, inputs.positions, inputs.tables, case.visibility)
    assert_close(double(result), double(plain), exact(case, inputs), case.dtype, f"{name}, {case}")


def double(tensor: torch.Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().cpu().double().numpy()
    return array
