"""Decode steps of the `triton` backend, recorded without a GPU: what a replay leaves out changes neither counts nor results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton", reason="Triton is not installed: pip install 'headcount[gpu]'", exc_type=ImportError)

import torch

import engine
from engine.backends.fold import fold
from engine.backends.gpu.recording import Replay, Results
from engine.backends.gpu.runner import GpuRunner
from engine.backends.torch.embedding import TorchEmbedding
from engine.backends.torch.runner import tensors_of
from engine.errors import EngineError
from engine_kernels.backends import no_gpu
from tests.kernels.triton.test_runner import triton_runner
from tests.support import engine_side
from tests.support.hugging_face_sources import gpt2
from tests.support.random_specs import random_checkpoint
from tests.support.recordings import in_place, once, record_by

emulated_only = pytest.mark.skipif(no_gpu() is None, reason="a GPU records its own steps")
PLAIN, ADAPTIVE, TAILS = 127, 30, 69  # seeds of random models: one plain embedding cluster; several; one, and tails in the vocabulary


def test_the_seeds_are_what_they_are_said_to_be() -> None:
    plain, adaptive, tails = (triton_runner(seed) for seed in (PLAIN, ADAPTIVE, TAILS))
    assert [runner.vocabulary.indices for runner in (plain, adaptive, tails)] == [1, 0, 1]
    assert len(adaptive.stack.embedding.clusters) > 1 and len(adaptive.stack.head.clusters) > 1 and len(tails.stack.head.clusters) > 1


def decoded(runner: GpuRunner, want: Any) -> Iterator[np.ndarray]:
    """Three tokens of one sequence and of two others beside each other in turn; slots are opened in between, and some rings move."""
    ids, slots = np.arange(3) % runner.stack.vocab, [runner.open() for _ in range(3)]
    for t in range(3):
        for chosen in (slots[:1], slots[:0:-1]):
            found = engine_side.step(runner, [ids[t : t + 1]] * len(chosen), chosen, [t] * len(chosen), want)
            yield np.array(found.next.head if want == "next" else found.log_probs)
        runner.open()


@emulated_only
@pytest.mark.parametrize("want", ["log_probs", "next"])
@pytest.mark.parametrize("seed", [PLAIN, ADAPTIVE])
def test_replays_that_write_over_their_results_give_the_same_bits(seed: int, want: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = list(decoded(triton_runner(seed), want))
    record_by(in_place, monkeypatch)
    for found, expected in zip(decoded(triton_runner(seed), want), wanted, strict=True):
        np.testing.assert_array_equal(found, expected)


@emulated_only
@pytest.mark.parametrize("want", ["log_probs", "next"])
def test_counts_need_no_call_per_step(want: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def counts() -> list[tuple[dict[str, int], int]]:
        runner = triton_runner(ADAPTIVE)
        return [(runner.describe()["launches"], runner.describe()["launches_of_last_step"]) for _ in decoded(runner, want)]

    wanted = counts()
    assert wanted[0][1] > 0 and [sum(launches.values()) for launches, _ in wanted] == sorted({sum(c.values()) for c, _ in wanted})
    record_by(once, monkeypatch)
    assert counts() == wanted


@emulated_only
@pytest.mark.parametrize("seed", [ADAPTIVE, TAILS])
def test_tails_are_right_after_another_step(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    record_by(in_place, monkeypatch)
    runner = triton_runner(seed)
    slot = runner.open()
    first = engine_side.step(runner, [np.array([1])], [slot], [0], "next").next
    assert first is not None
    wanted = first.tail(1, np.array([0]))
    second = engine_side.step(runner, [np.array([2])], [slot], [1], "next").next
    assert second is not None and not np.array_equal(second.tail(1, np.array([0])), wanted)
    np.testing.assert_array_equal(first.tail(1, np.array([0])), wanted)


@emulated_only
def test_steps_are_recorded_and_replayed_inside_the_device_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    depth, done = [0], []

    @contextmanager
    def guard(runner: GpuRunner) -> Iterator[None]:
        depth[0] += 1
        yield
        depth[0] -= 1

    def record(work: Replay) -> Replay:
        done.append(("record", depth[0]))

        def replay() -> Results:
            done.append(("replay", depth[0]))
            return work()

        return replay

    monkeypatch.setattr(GpuRunner, "_on_device", guard)
    record_by(record, monkeypatch)
    runner = triton_runner(PLAIN)
    for want in ("log_probs", "next"):
        engine_side.step(runner, [np.array([1])], [runner.open()], [0], want)
    with runner.decode_step(1) as step:
        step()
    assert [what for what, _ in done] == ["record", "replay"] * 3 + ["replay"]
    assert {inside for _, inside in done} == {1}


@emulated_only
def test_no_recording_outlives_the_rings_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[GpuRunner] = []

    def where() -> list[int]:
        return [rings.keys.data_ptr() for rings in built[0]._rings if rings is not None]

    def record(work: Replay) -> Replay:
        recorded = where()

        def replay() -> Results:
            assert where() == recorded
            return work()

        return replay

    record_by(record, monkeypatch)
    runner = triton_runner(PLAIN)
    built.append(runner)
    before = where()
    for want in ("log_probs", "next"):
        list(decoded(runner, want))
    with runner.decode_step(2) as step:
        for _ in range(9):
            runner.open()
        step()
    assert where() != before


def test_the_variable_is_read_once_when_a_runner_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADCOUNT_GPU_GRAPHS", "0")
    runner = triton_runner(PLAIN)
    monkeypatch.setenv("HEADCOUNT_GPU_GRAPHS", "off")
    engine_side.one_by_one(runner, np.array([1, 2]))
    with pytest.raises(EngineError, match="HEADCOUNT_GPU_GRAPHS: expected 0 or 1, found 'off'"):
        triton_runner(PLAIN)


@pytest.mark.parametrize("seed", [PLAIN, ADAPTIVE])
def test_the_step_of_benchmarks_has_a_slot_a_ring_and_random_rows_for_each_sequence(seed: int) -> None:
    runner = triton_runner(seed)
    others = [runner.open() for _ in range(2)]
    with runner.decode_step(3) as step:
        slots = step.slots.tolist()
        assert len({0, *others, *slots}) == 6  # 0 is the spare slot
        assert bool((step.hidden != 0).all())
        for layer, rings in zip(runner.layers, runner._rings, strict=True):
            if rings is not None:
                assert all(bool((held[slots] != 0).all()) for held in (rings.keys, rings.values))
                assert step.positions.min() >= layer.capacity
        step()
        first = step.results[0][:3].clone()
        assert len({tuple(row) for row in first.tolist()}) == 3
        for _ in range(8):  # the rings move
            runner.open()
        step()
        assert torch.equal(step.results[0][:3], first)
        launches = runner.describe()["launches_of_last_step"]
    assert launches > 0 and runner.check_after_replays() is None
    assert [runner.open() for _ in range(3)] == sorted(slots)
    ids = np.array([1, 0, 1])
    np.testing.assert_array_equal(engine_side.whole(runner, ids), engine_side.whole(triton_runner(seed), ids))


def test_rows_of_sequences_are_read_from_their_own_rings() -> None:
    """The same hidden rows for all: what tells results apart is each one's ring."""
    runner = triton_runner(PLAIN)
    with runner.decode_step(4) as step:
        step.hidden[:] = step.hidden[0].clone()
        step.positions[:] = step.positions[0]
        for _ in range(8):  # the rings move, and what the step reads is written to its buffers again
            runner.open()
        step()
        assert len({tuple(row) for row in step.results[0].tolist()}) == 4


def test_a_plain_embedding_in_a_step_is_that_of_plain_pytorch(tmp_path: Path) -> None:
    """To the bit: random models, scaled ones among them, and GPT-2 with its positions."""
    scales = []
    for seed in (16, PLAIN):
        runner, folded = triton_runner(seed), fold(random_checkpoint(seed))
        scales.append(runner.stack.embedding.scale)
        weights = tensors_of(folded.model, torch.float32, runner.device)
        same_embedding(runner, TorchEmbedding(runner.stack, weights), None)
    assert scales[0] == 1 != scales[1]
    gpt2().write(tmp_path)
    with engine.load(tmp_path, backend="triton", dtype="float32") as model:
        runner = model._runner
        assert isinstance(runner, GpuRunner) and runner.vocabulary.indices == 2
        weights = runner.vocabulary.weights
        same_embedding(runner, TorchEmbedding(runner.stack, weights), np.arange(7) % 5)


def same_embedding(runner: GpuRunner, plain: TorchEmbedding, positions: np.ndarray | None) -> None:
    ids = np.arange(7)[::-1] % runner.stack.vocab
    inputs = runner.vocabulary.inputs(ids, positions, None)
    assert isinstance(inputs, np.ndarray)
    wanted = plain.embed(ids, positions, None)
    assert torch.equal(runner.vocabulary.begin(torch.from_numpy(inputs).to(runner.device)), wanted)
    assert torch.equal(runner.vocabulary.embed(ids, positions, None), wanted)
