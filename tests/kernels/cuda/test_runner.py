"""The `cuda` backend: published checkpoints and random models against the oracle by the one rule, and refusals with a reason."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("torch")

import engine
from engine.backends.fold import fold
from engine.backends.gpu.cuda import build
from engine.backends.gpu.runner import GpuRunner
from engine.backends.plan import compile_stack
from engine.backends.runner import Limits
from engine.checkpoint import Checkpoint
from engine.loading import open_checkpoint
from engine_kernels import backends
from engine_kernels.backends import Wanted, no_gpu, resolve
from engine_kernels.errors import KernelError
from engine_kernels.testing import EPS, difference, tolerance
from tests.backends.test_oracle_properties import Case, moved
from tests.oracle.model import run
from tests.support import engine_side
from tests.support.random_specs import random_checkpoint

ROOT = Path(__file__).parents[3]
FIXTURES = ROOT / "tests" / "fixtures"
KINDS = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def rounded(checkpoint: Checkpoint, dtype: str) -> Checkpoint:
    return replace(checkpoint, weights={name: weight.astype(KINDS[dtype]) for name, weight in checkpoint.weights.items()})


def runner_of(checkpoint: Checkpoint, dtype: str) -> GpuRunner:
    runner = build(compile_stack(checkpoint.spec), fold(checkpoint), Limits(dtype, device="auto"))
    assert isinstance(runner, GpuRunner)
    return runner


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("name", ["aiha-char/checkpoint.ckpt", "aiha-adaptive/checkpoint.ckpt", "fair-pers/checkpoint.pt", "txl/model.pt"])
def test_published_checkpoints_keep_to_the_oracle(name: str, dtype: str) -> None:
    """The start of a fixture's first sequence: whole, its end token by token, and the scores of its tokens."""
    checkpoint = rounded(open_checkpoint(FIXTURES / name), dtype)
    ids = np.load((FIXTURES / name).with_name("expected.npz"))["ids"][0, :21]
    spec = checkpoint.spec.to_dict()
    exact = run(spec, checkpoint.weights, ids).log_probs
    plain = run(spec, moved(checkpoint.weights, 0, EPS[dtype]), ids, dtype="float32").log_probs
    allowed, runner = tolerance(plain, exact, dtype), runner_of(checkpoint, dtype)
    assert difference(engine_side.whole(runner, ids), exact) <= allowed
    slot = runner.open()
    nll = engine_side.step(runner, [ids[:18]], [slot], [0], "target_nll", ids[1:19]).nll
    assert nll is not None and difference(nll, -exact[np.arange(18), ids[1:19]]) <= allowed
    for t in (18, 19, 20):
        assert difference(engine_side.step(runner, [ids[t : t + 1]], [slot], [t]).log_probs[0], exact[t]) <= allowed


# Those of the random models whose heads have 8 numbers: every dialect, norm and start between them.
SEEDS = (1, 11, 13, 19, 66, 81, 100, 123)


@pytest.mark.parametrize("seed", SEEDS)
def test_keeps_to_the_oracle(seed: int) -> None:
    """Whole, with the stream of every layer; then two sequences by chunks, single rows beside several, and the next token."""
    dtype = list(KINDS)[seed % 2]
    case = Case.of(rounded(random_checkpoint(seed), dtype), dtype)
    runner, ids = runner_of(case.checkpoint, dtype), case.ids[:40]
    streams: dict[int, np.ndarray] = {}
    case.check(engine_side.whole(runner, ids, tap=lambda layer, rows: streams.__setitem__(layer, rows.copy())), "whole")
    for layer, rows in streams.items():
        assert difference(rows, case.exact.streams[layer + 1][: len(ids)]) <= case.allowed_streams, f"stream after layer {layer}"
    first, second, cut = runner.open(), runner.open(), len(ids) // 2
    mixed = engine_side.step(runner, [ids[:1], ids[:cut]], [second, first], [0, 0]).log_probs
    case.check(mixed[:1], "one row beside several")
    case.check(mixed[1:], "several rows beside one")
    one = engine_side.step(runner, [ids[cut : cut + 1], ids[1:2]], [first, second], [cut, 1], want="next").next
    for head, place in zip(one.head, (cut, 1), strict=True):
        exact = case.exact.log_probs[place][: runner.stack.head.clusters[0].size]
        assert difference(head[: len(exact)], exact) <= case.allowed


def test_is_loaded_by_name_and_explains_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backends.TRIED, "cuda", None)
    ids = np.arange(9)[None] % 7
    with engine.load(FIXTURES / "txl" / "model.pt", backend="cuda") as model:
        explained = model.explain()
        assert (explained.backend, explained.dtype) == ("cuda", "bfloat16")
        assert explained.runner["operations"] == "engine_kernels.cuda_ops"
        scored = model.score(ids).token_nll
        launches = model.explain().runner["launches"]
        assert launches["project_heads"] == launches["attend_rows"] == len(model.spec.layers)
    with engine.load(FIXTURES / "txl" / "model.pt", dtype="float32") as model:
        assert np.abs(model.score(ids).token_nll - scored).max() < 0.1
        assert "when named" in dict(model.explain().refusals)["cuda"]


def refusal(wanted: Wanted) -> str:
    with pytest.raises(KernelError) as caught:
        resolve("cuda", wanted)
    return str(caught.value)


def test_what_it_cannot_run_is_refused_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "bfloat16 and float16" in refusal(Wanted(dtype="float32"))
    assert "heads of 12" in refusal(Wanted(head_dims=(64, 12)))
    assert "heads of 136" in refusal(Wanted(head_dims=(136,)))
    assert "int8" in refusal(Wanted(quantization="int8"))
    if os.environ.get("HEADCOUNT_CUDA_EMULATED") == "1":
        assert "device='cuda'" in refusal(Wanted(device="cuda"))
    monkeypatch.delenv("HEADCOUNT_CUDA_EMULATED", raising=False)
    assert "runs on GPUs" in refusal(Wanted(device="cpu"))


@pytest.mark.skipif(no_gpu() is None, reason="there is a GPU")
def test_without_a_gpu_or_the_module_loading_fails_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADCOUNT_CUDA_EMULATED")
    with pytest.raises(engine.errors.BackendUnavailable, match="no GPU driver"):
        engine.load(FIXTURES / "txl" / "model.pt", backend="cuda")
    monkeypatch.setattr("engine_kernels.backends.GPU_FILES", ("/",))  # as if there were one
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "engine_kernels._cuda" else found(name))
    with pytest.raises(engine.errors.BackendUnavailable, match=r"built without CUDA: .+ was"):
        engine.load(FIXTURES / "txl" / "model.pt", backend="cuda")
