"""Attention of prefill: our kernels, and on the same tensors eager and compiled PyTorch, SDPA with its bias written out, FlexAttention."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from bench.suites.gpu.figures import Run, host, started
from bench.suites.gpu.plan import OURS
from engine_kernels import reference
from engine_kernels.gpu_ops import Sequences
from engine_kernels.ops import AttentionTables, Visibility

SIDE_BY_SIDE = 8  # sequences the reference takes at once, which holds their scores in float64
COMPILED = 2  # row counts for which a peer is compiled, as that takes its time
MODES = ("reduce-overhead", "max-autotune")
Way = Callable[["Case"], Callable[[], torch.Tensor]]  # everything that does not belong to the timed work is done beforehand


@dataclass(frozen=True)
class Case:
    """query [B, H, T, D], keys and values [B, H, W + T, D], tables with distances, biases and persistent vectors."""

    query: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    positions: torch.Tensor
    tables: AttentionTables[torch.Tensor]
    visibility: Visibility

    def flops(self, *, relative: bool = True) -> int:
        batch, heads, rows, head_dim = self.query.shape
        persistent = 0 if self.tables.persistent_keys is None else self.tables.persistent_keys.shape[1]
        return batch * heads * rows * head_dim * (4 * (persistent + self.visibility.reach) + 2 * self.visibility.reach * relative)

    def some(self, sequences: slice | list[int]) -> Case:
        query, keys, values, positions = (each[sequences] for each in (self.query, self.keys, self.values, self.positions))
        return replace(self, query=query, keys=keys, values=values, positions=positions)

    def parts(self) -> Iterator[Case]:
        """A few sequences each."""
        return (self.some(slice(begin, begin + SIDE_BY_SIDE)) for begin in range(0, len(self.query), SIDE_BY_SIDE))

    def without_distances(self, *, zeros: bool) -> Case:
        """No distances and no biases, or zeros in their place, which is the same."""
        tables = self.tables
        given = (tables.distances, tables.content_bias, tables.position_bias)
        distances, content, position = (torch.zeros_like(each) if zeros and each is not None else None for each in given)
        return replace(self, tables=replace(tables, distances=distances, content_bias=content, position_bias=position))


def measure(run: Run) -> None:
    """By the part's backend; the compiled peers for the first head count and the first row counts only."""
    compiled = run.backend == "compiled"
    for heads in run.sizes.heads[:1] if compiled else run.sizes.heads:
        for rows in run.sizes.rows[:COMPILED] if compiled else run.sizes.rows:
            size = f"{heads} heads, {rows} rows"
            run.attempt(f"attention, {run.backend}, {size}", partial(_by_us if run.backend in OURS else _by_torch, run, heads, rows, size))


def _by_us(run: Run, heads: int, rows: int, size: str) -> None:
    """With distances and without them; the difference is what the relative term costs inside the kernels."""
    case = draw(run, heads, rows)
    bare, zeros = case.without_distances(zeros=False), case.without_distances(zeros=True)
    full = _time(run, f"{run.backend}, {size}", ours(run, case), case.flops(), *_answers(case, case))
    less = _time(run, f"{run.backend} without distances, {size}", ours(run, bare), case.flops(relative=False), *_answers(bare, zeros))
    if full is not None and less is not None:
        run.add("relative", f"{run.backend}: attention with distances less without, {size}", seconds=full - less)


def _by_torch(run: Run, heads: int, rows: int, size: str) -> None:
    ways: dict[str, Way] = {"sdpa, bias written out": _sdpa, "eager": _eager}
    if run.backend == "compiled":
        ways = {"flex": partial(_flex, compiled=not run.interpreted)}
        ways |= {} if run.interpreted else {f"torch.compile, {mode}": partial(_compiled, mode=mode) for mode in MODES}
    case = draw(run, heads, rows)
    plain, exact = _answers(case, case)
    for name, way in ways.items():
        run.attempt(f"attention, {name}, {size}", partial(_by_one, run, f"{name}, {size}", way, case, plain, exact))


def _by_one(run: Run, label: str, way: Way, case: Case, plain: np.ndarray, exact: np.ndarray) -> None:
    _time(run, label, way(case), case.flops(), plain, exact)


def _answers(case: Case, dense: Case) -> tuple[np.ndarray, np.ndarray]:
    """Of every sequence: plain PyTorch's in the dtype of the case, and `dense` in float64."""
    plain = np.concatenate([host(_eager(part)()) for part in case.parts()])
    return plain, np.concatenate([host(_dense(part, torch.float64)) for part in dense.parts()])


def _time(run: Run, label: str, work: Callable[[], torch.Tensor], flops: int, plain: np.ndarray, exact: np.ndarray) -> float | None:
    """A figure of what passes the gate on all sequences; its seconds."""
    before = Counter(run.kernels.calls)
    gate = run.gate(f"attention, {label}", host(work()), plain, exact)
    kernels = started(before, run.kernels.calls)
    if gate is None:
        return None
    took = run.clock.both(work)
    rate = flops / took["seconds"]
    run.add("attention", label, **took, flops=rate, of_peak=rate / run.matmul_rate, kernels=kernels, gate=gate)
    return float(took["seconds"])


def draw(run: Run, heads: int, rows: int) -> Case:
    shape = run.sizes.geometry
    batch, length, head_dim = rows // shape.rows, shape.rows, shape.head_dim
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
    visibility = Visibility(shape.window, 0, shape.window, 0, True)
    keys, values = (normal(batch, heads, shape.window + length, head_dim) for _ in "kv")
    positions = torch.full((batch,), 5 * length, device=run.device)
    return Case(normal(batch, heads, length, head_dim), keys, values, positions, tables, visibility)


def ours(run: Run, case: Case) -> Callable[[], torch.Tensor]:
    """On the layout the runner has: packed rows, rings, new rows apart."""
    batch, heads, length, head_dim = case.query.shape
    kernels, reach = run.kernels, case.visibility.reach
    new = (case.query, case.keys[:, :, reach:], case.values[:, :, reach:])
    query, keys, values = (rows.transpose(1, 2).flatten(0, 1).contiguous() for rows in new)  # [rows, H, D]
    past = case.keys[:, :, :reach].contiguous(), case.values[:, :, :reach].contiguous()
    order = torch.arange(batch, device=run.device)
    sequences = Sequences(order * length, torch.full_like(order, length), order, torch.zeros_like(order), case.positions)
    lengths, packed = np.full(batch, length), (keys[:, :, None], values[:, :, None])

    def work() -> torch.Tensor:
        out = kernels.attend(query, past, packed, None, sequences, lengths, case.tables, case.visibility)
        return out.reshape(batch, length, heads, head_dim).transpose(1, 2)

    return work


def _eager(case: Case) -> Callable[[], torch.Tensor]:
    return lambda: reference.attend(case.query, case.keys, case.values, case.positions, case.tables, case.visibility)


def _compiled(case: Case, *, mode: str) -> Callable[[], torch.Tensor]:
    attend = torch.compile(reference.attend, mode=mode, dynamic=False)
    return lambda: attend(case.query, case.keys, case.values, case.positions, case.tables, case.visibility)


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
    visibility, rows = case.visibility, query.shape[2]
    place = (
        torch.arange(visibility.reach + rows, device=query.device)
        - torch.arange(rows, device=query.device)[:, None]
        - 1
        + visibility.first_distance
    )
    scores = by_distance(case, dtype)
    bias = scores.gather(3, place.clamp(0, visibility.reach - 1).expand(*scores.shape[:3], -1))
    bias = bias.masked_fill((place < 0) | (place >= visibility.reach), -torch.inf)
    bias = torch.cat((bias, undo[None, :, None].expand(*bias.shape[:3], -1)), dim=3)
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=bias)


def _flex(case: Case, *, compiled: bool) -> Callable[[], torch.Tensor]:
    """FlexAttention that reads the scores by distance where they stand; compiled where there is a GPU."""
    from torch.nn.attention.flex_attention import flex_attention

    attend = torch.compile(flex_attention, dynamic=False) if compiled else flex_attention
    reach, first, context = case.visibility.reach, case.visibility.first_distance, case.keys.shape[2]

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
