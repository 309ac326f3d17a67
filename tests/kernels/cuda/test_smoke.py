"""Each CUDA kernel alone, smallest first: what runs first on a new GPU. tools/gpu/steps.py says which tests are a family of kernels."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from bench.core.cases import S1, TINY, compact, dense_model
from engine.backends.gpu.cuda import CudaRunner
from engine.checkpoint import Checkpoint
from engine_kernels import cuda_decode
from engine_kernels.cuda_ops import CudaKernels
from engine_kernels.testing import EPS, difference, tolerance
from tests.backends.test_oracle_properties import moved
from tests.kernels.cuda.conftest import EMULATED
from tests.kernels.cuda.test_projections import by_dtype
from tests.kernels.cuda.test_runner import rounded, runner_of
from tests.oracle.model import run
from tests.support import engine_side, smoke_cases
from tests.support.attention_cases import DEVICE

by_rows = pytest.mark.parametrize("rows", smoke_cases.ROWS)
TOKENS = 20 if smoke_cases.GPU else 3
STREAMS = (1, 2, 16) if smoke_cases.GPU else (1, 2)
SHAPE = replace(S1, layers=3, small_words=99) if smoke_cases.GPU else replace(TINY, hidden=64, head_dim=32)
# By layer: the dense model's heads, some that are no prefix, none.
KEPT = {"three layers": (tuple(range(SHAPE.heads)), (1, 3), ()), "one layer": (tuple(range(SHAPE.heads)),), "one head": ((2,),)}


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> CudaKernels:
    """Without hopper_attend, which has tests of its own."""
    monkeypatch.setenv("HEADCOUNT_HOPPER_ATTEND", "never")
    return CudaKernels(torch.device(DEVICE))


@by_rows
def test_normalise(rows: int, kernels: CudaKernels) -> None:
    smoke_cases.normalise(kernels, rows)


@by_dtype
@by_rows
def test_write_rings(rows: int, dtype: str, kernels: CudaKernels) -> None:
    smoke_cases.write_rings(kernels, rows, dtype)


@by_dtype
@by_rows
def test_project(rows: int, dtype: str, kernels: CudaKernels) -> None:
    smoke_cases.project(kernels, rows, dtype)


@by_dtype
@by_rows
def test_project_heads(rows: int, dtype: str, kernels: CudaKernels) -> None:
    smoke_cases.project_heads(kernels, rows, dtype)


@by_dtype
@pytest.mark.parametrize("streams", smoke_cases.STREAMS)
def test_attend_ring(streams: int, dtype: str, kernels: CudaKernels) -> None:
    """attend_constants before it."""
    smoke_cases.attend_ring(kernels, streams, dtype)
    assert set(kernels.calls) == {"attend_constants", "attend_ring"}


@by_dtype
@by_rows
def test_attend_rows(rows: int, dtype: str, kernels: CudaKernels) -> None:
    smoke_cases.attend_rows(kernels, rows, dtype)
    assert set(kernels.calls) == {"attend_constants", "attend_rows"}


@by_dtype
@by_rows
def test_attend_bidirectional(rows: int, dtype: str, kernels: CudaKernels) -> None:
    smoke_cases.attend_bidirectional(kernels, rows, dtype)


@by_dtype
@by_rows
def test_score_words(rows: int, dtype: str, kernels: CudaKernels) -> None:
    smoke_cases.score_words(kernels, rows, dtype)


def model_of(kept: str, dtype: str) -> Checkpoint:
    """The published geometry in fewer layers; on the CPU a tiny one whose heads the decode kernel takes."""
    lists = KEPT[kept]
    dense = dense_model(replace(SHAPE, layers=len(lists)), vocabulary=False)
    return rounded(compact(dense, lists), dtype)


@by_dtype
@pytest.mark.parametrize("streams", STREAMS)
@pytest.mark.parametrize("kept", ["one head", "one layer", "three layers"])
def test_decode_step(kept: str, streams: int, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a graph: sequence i has a past of i tokens, then all take a token at a time."""
    decode(kept, streams, dtype, monkeypatch)


@pytest.mark.parametrize("size", [4, 1])
def test_decode_step_in_clusters(size: int, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Of one size alone, and not of the best that fits."""
    if EMULATED:
        module: Any = importlib.import_module("engine_kernels._cuda_emulated")
        request.addfinalizer(lambda: module.set_clusters({2: 2}))
        module.set_clusters({size: 3})
    monkeypatch.setattr(cuda_decode, "CLUSTERS", (size,))
    monkeypatch.setattr(cuda_decode, "EMULATED_CLUSTERS", (size,))
    decode("three layers", 2, "bfloat16", monkeypatch)


def decode(kept: str, streams: int, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADCOUNT_GPU_GRAPHS", "0")
    checkpoint = model_of(kept, dtype)
    ids = np.random.default_rng(streams).integers(0, checkpoint.spec.vocab, streams + TOKENS)
    spec = checkpoint.spec.to_dict()
    exact = run(spec, checkpoint.weights, ids).log_probs
    plain = run(spec, moved(checkpoint.weights, 0, EPS[dtype]), ids, dtype="float32").log_probs
    allowed, runner = tolerance(plain, exact, dtype), runner_of(checkpoint, dtype)
    assert isinstance(runner, CudaRunner)
    slots = [runner.open() for _ in range(streams)]
    for past in range(1, streams):
        engine_side.step(runner, [ids[:past]], [slots[past]], [0])
    for token in range(TOKENS):
        places = np.arange(streams) + token
        rows = engine_side.step(runner, [ids[place : place + 1] for place in places], slots, places.tolist()).log_probs
        assert difference(rows, exact[places]) <= allowed, f"{kept}, {streams} sequences, token {token}"
    assert runner.describe()["decode"].startswith("one launch") and runner.describe()["launches_of_last_step"] == 1
