"""`make bench`: operations of the published geometry one by one under pytest-benchmark, each checked before it is timed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from bench.core import cases
from bench.core.cases import S1
from bench.core.engines import EngineSettings, Stream, build
from engine.checkpoint import Checkpoint
from engine.measure.gate import LOG_PROB_LIMIT
from engine.measure.tokens import random_ids
from engine_kernels import reference
from engine_kernels.ops import AttentionTables, Visibility
from engine_kernels.testing import difference

HEADS = [8, 5, 3]
CLOSE = 1e-4  # float32 results near 1
VISIBILITY = Visibility(window=S1.window, segment=0, reach=S1.window, first_distance=0, attended_zeros=True)
TORCH = EngineSettings("torch", "float32")


def attention(heads: int, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, AttentionTables[torch.Tensor]]:
    """Queries [1, heads, rows, D], keys and values [1, heads, window + rows, D], and the tables of a layer."""
    draw = torch.Generator().manual_seed(heads)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    dim, persistent = S1.head_dim, S1.persistent
    tables = AttentionTables(
        distances=normal(heads, S1.window, dim),
        content_bias=normal(heads, dim),
        position_bias=normal(heads, dim),
        persistent_keys=normal(heads, persistent, dim) * dim**-0.5,
        persistent_values=normal(heads, persistent, dim),
        spans=None,
        span_ramp=0,
    )
    keys, values = normal(1, heads, S1.window + rows, dim), normal(1, heads, S1.window + rows, dim)
    return normal(1, heads, rows, dim), keys, values, tables


def ring(stream: torch.Tensor, position: int) -> torch.Tensor:
    """The rows [1, heads, window + rows, D] of which row window + p is position p, as a ring at `position`: slot p mod window holds p."""
    positions = torch.arange(position - S1.window + 1, position + 1)
    slots = torch.empty_like(stream[:, :, : S1.window])
    slots[:, :, positions % S1.window] = stream[:, :, S1.window + positions]
    return slots


@pytest.mark.parametrize("heads", HEADS)
def test_attend_a_segment(benchmark: Any, heads: int) -> None:
    query, keys, values, tables = attention(heads, S1.rows)
    start = torch.tensor([0])
    found = reference.attend(query, keys, values, start, tables, VISIBILITY)
    last = S1.rows - 1
    rings = ring(keys, last), ring(values, last)
    alone = reference.attend_cached(query[:, :, last], *rings, torch.tensor([last]), tables, VISIBILITY)
    assert difference(found[:, :, last], alone) <= CLOSE
    benchmark(reference.attend, query, keys, values, start, tables, VISIBILITY)


@pytest.mark.parametrize("heads", HEADS)
def test_attend_a_token(benchmark: Any, heads: int) -> None:
    query, keys, values, tables = attention(heads, 1)
    rings, start = (ring(keys, 0), ring(values, 0)), torch.tensor([0])
    found = reference.attend_cached(query[:, :, 0], *rings, start, tables, VISIBILITY)
    assert difference(found, reference.attend(query, keys, values, start, tables, VISIBILITY)[:, :, 0]) <= CLOSE
    benchmark(reference.attend_cached, query[:, :, 0], *rings, start, tables, VISIBILITY)


def step(stream: Stream, *arguments: Any) -> Any:
    """The one thing a step's result holds."""
    result = stream.step(*arguments)
    return next(value for value in vars(result).values() if value is not None)


@pytest.fixture(scope="module")
def one_layer() -> Checkpoint:
    return cases.dense_model(replace(S1, layers=1), vocabulary=False)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("rows", [S1.rows, 1], ids=["segment", "token"])
def test_one_layer(benchmark: Any, one_layer: Checkpoint, heads: int, rows: int) -> None:
    kept = (tuple(range(S1.heads - heads, S1.heads)),)
    ids = random_ids(S1.small_words, (1, S1.rows), seed=0)
    with Stream(build(cases.compact(one_layer, kept), TORCH), 1) as stream:
        with Stream(build(cases.masked(one_layer, kept), TORCH), 1) as masked:
            assert difference(step(stream, ids, "hidden"), step(masked, ids, "hidden")) <= CLOSE
        benchmark(stream.step, ids[:, :rows], "hidden")


@pytest.mark.parametrize("want", ["target_nll", "next"])
def test_vocabulary(benchmark: Any, want: Any) -> None:
    """A model without heads is embedding and adaptive softmax: 8 rows scored, or the first cluster of the last."""
    shape = replace(S1, layers=1)
    runner = build(cases.compact(cases.dense_model(shape, vocabulary=True), ((),)), TORCH)
    ids = random_ids(sum(shape.words), (1, 9), seed=0)
    targets = ids[:, 1:]
    with Stream(runner, 1) as stream:
        log_probs = step(stream, ids[:, :-1], "log_probs")
        assert difference(np.exp(log_probs.astype(np.float64)).sum(axis=1), np.ones(8)) <= CLOSE
        if want == "target_nll":
            nll = step(stream, ids[:, :-1], want, targets)
            assert difference(nll, -log_probs[np.arange(8), targets[0]]) <= LOG_PROB_LIMIT
            benchmark(stream.step, ids[:, :-1], want, targets)
        else:
            head = step(stream, ids[:, :-1], want).head
            assert difference(head[0, : shape.words[0]], log_probs[-1, : shape.words[0]]) <= LOG_PROB_LIMIT
            benchmark(stream.step, ids[:, :-1], want)
