"""Decode steps of the cuda backend in one launch: models it runs against the oracle, and what says where it does not run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from engine.backends.gpu.cuda import CudaRunner
from engine.checkpoint import Checkpoint
from engine.errors import EngineError
from engine.spec import Cluster, Embedding, OutputCluster, Vocabulary
from engine_kernels.cuda_decode import PATIENCE
from engine_kernels.testing import difference
from tests.backends.test_oracle_properties import Case
from tests.kernels.cuda.test_runner import KINDS, rounded, runner_of
from tests.support import engine_side
from tests.support.random_specs import random_checkpoint, random_weights

HIDDEN, VOCAB = 64, 11
# Every dialect, norm and start; spans, segments, layers without heads and up to 8 heads.
SEEDS = (0, 3, 7, 8, 10, 17)


def wide(seed: int) -> Checkpoint:
    """A random model in sizes of the decode kernel: 32 numbers per head, no feed-forward, a plain vocabulary."""
    spec = random_checkpoint(seed).spec
    layers = tuple(replace(layer, attention=replace(layer.attention, head_dim=32), feed_forward=None) for layer in spec.layers)
    embedding = Embedding((Cluster(VOCAB, HIDDEN, False),), 1.0)
    head = Vocabulary((OutputCluster(VOCAB, HIDDEN, False, False, False),), "ascending", "hidden", True)
    spec = replace(spec, hidden=HIDDEN, vocab=VOCAB, layers=layers, embedding=embedding, head=head).check()
    return Checkpoint(spec, random_weights(spec, np.random.default_rng(seed)), {"seed": seed})


def cuda_runner(checkpoint: Checkpoint, dtype: str) -> CudaRunner:
    runner = runner_of(checkpoint, dtype)
    assert isinstance(runner, CudaRunner)
    return runner


@pytest.mark.parametrize("seed", SEEDS)
def test_tokens_in_a_row_keep_to_the_oracle(seed: int) -> None:
    """Two sequences at positions of their own, one from the start and one after whole rows, for more tokens than some rings hold."""
    dtype = list(KINDS)[seed % 2]
    case = Case.of(rounded(wide(seed), dtype), dtype)
    runner, ids = cuda_runner(case.checkpoint, dtype), case.ids[:12]
    early, late, cut = runner.open(), runner.open(), len(ids) // 2
    if cut:
        engine_side.step(runner, [ids[:cut]], [late], [0])
    for t in range(len(ids) - cut):
        rows = engine_side.step(runner, [ids[t : t + 1], ids[cut + t : cut + t + 1]], [early, late], [t, cut + t]).log_probs
        for row, place in zip(rows, (t, cut + t), strict=True):
            assert difference(row, case.exact.log_probs[place]) <= case.allowed, f"position {place}"
    described = runner.describe()
    if any(layer.attention.heads for layer in case.checkpoint.spec.layers):
        assert described["decode"].startswith("one launch")
        assert described["launches"]["decode_step"] == len(ids) - cut + (cut == 1)  # a first part of one row is a step too
        assert described["launches_of_last_step"] == 1


def test_more_rows_than_it_takes_run_by_kernels_of_each_layer() -> None:
    case = Case.of(rounded(wide(0), "float16"), "float16")
    runner = cuda_runner(case.checkpoint, "float16")
    slots = [runner.open() for _ in range(17)]
    rows = engine_side.step(runner, [case.ids[:1]] * 17, slots, [0] * 17).log_probs
    assert difference(rows, np.repeat(case.exact.log_probs[:1], 17, axis=0)) <= case.allowed
    assert "decode_step" not in runner.describe()["launches"]


def test_what_it_does_not_run_says_why() -> None:
    feed_forward = next(c for c in map(random_checkpoint, range(99)) if c.spec.layers[0].feed_forward)
    assert "no feed-forward" in cuda_runner(feed_forward, "float16").describe()["decode"]
    bare = next(c for c in map(random_checkpoint, range(99)) if not c.spec.layers[0].feed_forward and c.spec.layers[0].attention.heads)
    assert "heads of 32, 64 or 128" in cuda_runner(bare, "float16").describe()["decode"]


def test_it_can_be_kept_from_every_model(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case.of(rounded(wide(0), "float16"), "float16")
    monkeypatch.setenv("HEADCOUNT_DECODE_STEP", "never")
    runner = cuda_runner(case.checkpoint, "float16")
    rows = engine_side.step(runner, [case.ids[:1]], [runner.open()], [0]).log_probs
    assert difference(rows[0], case.exact.log_probs[0]) <= case.allowed
    described = runner.describe()
    assert "HEADCOUNT_DECODE_STEP=never" in described["decode"] and "decode_step" not in described["launches"]
    monkeypatch.setenv("HEADCOUNT_DECODE_STEP", "sometimes")
    with pytest.raises(EngineError, match="HEADCOUNT_DECODE_STEP"):
        cuda_runner(case.checkpoint, "float16")


def test_a_step_that_was_given_up_is_an_error_and_the_next_one_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PATIENCE, raising=False)
    case = Case.of(rounded(wide(0), "float16"), "float16")
    runner = cuda_runner(case.checkpoint, "float16")
    whole = runner._whole
    assert whole is not None
    slot = runner.open()
    whole._trouble.copy_(torch.tensor([1, 3, 2, 1], dtype=torch.int32))
    with pytest.raises(RuntimeError, match="block 3 before layer 2: expected the other blocks within 2 s, found nothing"):
        engine_side.step(runner, [case.ids[:1]], [slot], [0])
    runner.reset(slot)
    rows = engine_side.step(runner, [case.ids[:1]], [slot], [0]).log_probs
    assert difference(rows[0], case.exact.log_probs[0]) <= case.allowed
