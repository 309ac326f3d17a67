"""Attention of prefill: our kernels, and on the same tensors eager and compiled PyTorch, SDPA with its bias written out, FlexAttention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from bench.gpu.figures import Run, host
from engine_kernels import reference
from engine_kernels.gpu_ops import Sequences
from engine_kernels.ops import AttentionTables, Visibility

GATED = 2  # sequences the gate looks at; the rest are timed only
COMPILES = 45.0  # seconds that are kept for a compilation
Way = Callable[["Case"], Callable[[], torch.Tensor]]  # everything that does not belong to the timed work is done beforehand


@dataclass(frozen=True)
class Case:
    """query [B, H, T, D], keys and values [B, H, W + T, D], tables with distances, biases and persistent vectors."""

    query: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    positions: torch.Tensor
    tables: AttentionTables[torch.Tensor]
    see: Visibility

    def flops(self, *, relative: bool = True) -> int:
        batch, heads, rows, head_dim = self.query.shape
        persistent = 0 if self.tables.persistent_keys is None else self.tables.persistent_keys.shape[1]
        return batch * heads * rows * head_dim * (4 * (persistent + self.see.reach) + 2 * self.see.reach * relative)

    def part(self, sequences: int) -> Case:
        return Case(
            self.query[:sequences], self.keys[:sequences], self.values[:sequences], self.positions[:sequences], self.tables, self.see
        )


def measure(run: Run) -> None:
    for heads in run.sizes.heads:
        for rows in run.sizes.rows:
            run.attempt(f"attention, {heads} heads, {rows} rows", partial(_case, run, heads, rows))


def _case(run: Run, heads: int, rows: int) -> None:
    case = draw(run, heads, rows)
    exact, plain = host(_dense(case.part(GATED), torch.float64)), host(_eager(case.part(GATED))())
    peak = (run.figure("card", "matmul") or {}).get("flops")
    ways: dict[str, Way] = {name: partial(_ours, run, name) for name in run.backends}
    ways |= {"eager": _eager, "sdpa, bias written out": _sdpa}
    compiled: dict[str, Way] = {"flex": partial(_flex, compiled=not run.interpreted)}
    if not run.interpreted:
        compiled["torch.compile, reduce-overhead"] = partial(_compiled, mode="reduce-overhead")
        compiled["torch.compile, max-autotune"] = partial(_compiled, mode="max-autotune")
    for name, way in ways.items():
        run.attempt(f"attention, {name}, {heads} heads, {rows} rows", partial(_time, run, name, way, case, plain, exact, peak))
    for name, way in compiled.items():
        if (heads, rows) in ((run.sizes.heads[0], run.sizes.rows[0]), (run.sizes.heads[0], run.sizes.rows[-1])):
            work = partial(_time, run, name, way, case, plain, exact, peak)
            run.postpone(f"attention, {name}, {heads} heads, {rows} rows", work, COMPILES)
    run.attempt(f"attention without distances, {heads} heads, {rows} rows", partial(_without_distances, run, case, heads, rows))


def _time(
    run: Run,
    name: str,
    way: Way,
    case: Case,
    plain: np.ndarray,
    exact: np.ndarray,
    peak: float | None,
) -> None:
    batch, heads, length, _ = case.query.shape
    label = f"{name}, {heads} heads, {batch * length} rows"
    work = way(case)
    gate = run.gate(f"attention, {label}", host(work()[:GATED]), plain, exact)
    if gate is None:
        return
    took = run.seconds(work)
    rate = case.flops() / took["seconds"]
    run.add("attention", label, **took, flops=rate, of_peak=None if peak is None else rate / peak, gate=gate)


def _without_distances(run: Run, case: Case, heads: int, rows: int) -> None:
    """What the relative term costs: the same kernels without it."""
    tables = AttentionTables(None, None, None, case.tables.persistent_keys, case.tables.persistent_values, None, 0)
    bare = Case(case.query, case.keys, case.values, case.positions, tables, case.see)
    for name in run.backends:
        took = run.seconds(_ours(run, name, bare))
        label = f"{name} without distances, {heads} heads, {rows} rows"
        run.add("attention", label, **took, flops=bare.flops(relative=False) / took["seconds"])


def draw(run: Run, heads: int, rows: int) -> Case:
    shape = run.sizes.geometry
    batch, length, head_dim = max(1, rows // shape.rows), shape.rows, shape.head_dim
    generator = torch.Generator(run.device).manual_seed(rows + heads)

    def normal(*size: int, spread: float = 1.0, dtype: torch.dtype = run.torch_dtype) -> torch.Tensor:
        return (torch.randn(size, generator=generator, device=run.device) * spread).to(dtype)

    bias = partial(normal, heads, head_dim, spread=0.3, dtype=torch.float32)
    tables = AttentionTables(
        distances=normal(heads, shape.window, head_dim),
        content_bias=bias(),
        position_bias=bias(),
        persistent_keys=normal(heads, shape.persistent, head_dim, spread=head_dim**-0.5),
        persistent_values=normal(heads, shape.persistent, head_dim),
        spans=None,
        span_ramp=0,
    )
    see = Visibility(shape.window, 0, shape.window, 0, True)
    keys, values = (normal(batch, heads, shape.window + length, head_dim) for _ in "kv")
    positions = torch.full((batch,), 5 * length, device=run.device)
    return Case(normal(batch, heads, length, head_dim), keys, values, positions, tables, see)


def _ours(run: Run, backend: str, case: Case) -> Callable[[], torch.Tensor]:
    """On the layout the runner has: packed rows, rings, new rows apart."""
    batch, heads, length, head_dim = case.query.shape
    kernels, reach = run.kernels(backend), case.see.reach
    new = (case.query, case.keys[:, :, reach:], case.values[:, :, reach:])
    query, keys, values = (rows.transpose(1, 2).flatten(0, 1).contiguous() for rows in new)  # [rows, H, D]
    past = case.keys[:, :, :reach].contiguous(), case.values[:, :, :reach].contiguous()
    order = torch.arange(batch, device=run.device)
    sequences = Sequences(order * length, torch.full_like(order, length), order, torch.zeros_like(order), case.positions)
    lengths, packed = np.full(batch, length), (keys[:, :, None], values[:, :, None])

    def work() -> torch.Tensor:
        out = kernels.attend(query, past, packed, None, sequences, lengths, case.tables, case.see)
        return out.reshape(batch, length, heads, head_dim).transpose(1, 2)

    return work


def _eager(case: Case) -> Callable[[], torch.Tensor]:
    return lambda: reference.attend(case.query, case.keys, case.values, case.positions, case.tables, case.see)


def _compiled(case: Case, *, mode: str) -> Callable[[], torch.Tensor]:
    attend = torch.compile(reference.attend, mode=mode, dynamic=False)
    return lambda: attend(case.query, case.keys, case.values, case.positions, case.tables, case.see)


def _sdpa(case: Case) -> Callable[[], torch.Tensor]:
    return lambda: _dense(case, case.query.dtype)


def by_distance(case: Case, dtype: torch.dtype) -> torch.Tensor:
    """(q + position_bias) · distances / √D [B, H, T, W], nearness falling."""
    tables = case.tables
    assert tables.distances is not None and tables.position_bias is not None
    query = case.query.to(dtype) + tables.position_bias[:, None].to(dtype)
    table = tables.distances.to(dtype).flip(1).transpose(1, 2)
    scores: torch.Tensor = (query @ table) * query.shape[3] ** -0.5
    return scores


def _joined(case: Case, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Biased query, keys and values with the persistent vectors behind, for a softmax by 1 / √D; [H, N] that undoes the bias for those."""
    tables, root = case.tables, case.query.shape[3] ** 0.5
    assert tables.persistent_keys is not None and tables.persistent_values is not None and tables.content_bias is not None
    query = case.query.to(dtype) + tables.content_bias[:, None].to(dtype)
    persistent = tables.persistent_keys.to(dtype)
    undo = -(persistent @ tables.content_bias.to(dtype)[:, :, None])[..., 0]  # the plain query scores them
    batch = len(query)
    keys = torch.cat((case.keys.to(dtype), (persistent * root).expand(batch, -1, -1, -1)), dim=2)
    values = torch.cat((case.values.to(dtype), tables.persistent_values.to(dtype).expand(batch, -1, -1, -1)), dim=2)
    return query, keys, values, undo


def _dense(case: Case, dtype: torch.dtype) -> torch.Tensor:
    """All scores at once by scaled_dot_product_attention with the bias of every pair written out."""
    query, keys, values, undo = _joined(case, dtype)
    see, rows = case.see, query.shape[2]
    place = torch.arange(see.reach + rows, device=query.device) - torch.arange(rows, device=query.device)[:, None] - 1 + see.first
    scores = by_distance(case, dtype)
    bias = scores.gather(3, place.clamp(0, see.reach - 1).expand(*scores.shape[:3], -1))
    bias = bias.masked_fill((place < 0) | (place >= see.reach), -torch.inf)
    bias = torch.cat((bias, undo[None, :, None].expand(*bias.shape[:3], -1)), dim=3)
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=bias)


def _flex(case: Case, *, compiled: bool) -> Callable[[], torch.Tensor]:
    """FlexAttention that reads the scores by distance where they stand; compiled where there is a GPU."""
    from torch.nn.attention.flex_attention import flex_attention

    attend = torch.compile(flex_attention, dynamic=False) if compiled else flex_attention
    reach, first, context = case.see.reach, case.see.first, case.keys.shape[2]

    def work() -> torch.Tensor:
        query, keys, values, undo = _joined(case, case.query.dtype)
        scores = by_distance(case, case.query.dtype)

        def biased(score: torch.Tensor, b: torch.Tensor, h: torch.Tensor, row: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            place = key - row - 1 + first
            by_distance = score + scores[b, h, row, place.clamp(0, reach - 1)]
            by_distance = torch.where((place >= 0) & (place < reach), by_distance, -torch.inf)
            return torch.where(key < context, by_distance, score + undo[h, (key - context).clamp(min=0)])

        result: torch.Tensor = attend(query, keys, values, score_mod=biased)
        return result

    return work
