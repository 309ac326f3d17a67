"""Decode steps of the `cuda` backend, recorded without a GPU: counts of steps that take one launch and of steps that take many."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from engine.backends.gpu.cuda import CudaRunner
from engine_kernels.backends import no_gpu
from tests.kernels.cuda.test_decode import cuda_runner, wide
from tests.support import engine_side
from tests.support.recordings import in_place, once, record_by

emulated_only = pytest.mark.skipif(no_gpu() is None, reason="a GPU records its own steps")


def step(runner: CudaRunner, slots: list[int], token: int) -> np.ndarray:
    """A token of each of these sequences."""
    found = engine_side.step(runner, [np.array([1])] * len(slots), slots, [token] * len(slots)).log_probs
    assert found is not None
    return found


@emulated_only
def test_launches_are_those_of_the_last_step_whichever_was_recorded_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """17 sequences are more than one launch takes."""
    record_by(once, monkeypatch)
    runner = cuda_runner(wide(0), "float16")
    slots = [runner.open() for _ in range(18)]
    launches = []
    for token in range(2):
        step(runner, slots[1:], token)
        launches.append(runner.describe()["launches_of_last_step"])
        step(runner, slots[:1], token)
        assert runner.describe()["launches_of_last_step"] == runner.describe()["launches"]["decode_step"] - token == 1
    assert launches[0] == launches[1] > 1
    layers = sum(layer.start is not None for layer in runner.layers)
    assert runner.describe()["launches"]["attend_ring"] == 2 * layers


@emulated_only
def test_replays_that_write_over_their_results_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    direct = cuda_runner(wide(3), "bfloat16")
    record_by(in_place, monkeypatch)
    recorded = cuda_runner(wide(3), "bfloat16")
    slots = [direct.open(), direct.open()]
    assert [recorded.open(), recorded.open()] == slots
    for token in range(3):
        for chosen in (slots, slots[:1]) if token == 2 else (slots,):
            place = token + (len(chosen) == 1)
            np.testing.assert_array_equal(step(recorded, chosen, place), step(direct, chosen, place))


def test_without_graphs_steps_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    with_graphs = cuda_runner(wide(0), "float16")
    monkeypatch.setenv("HEADCOUNT_GPU_GRAPHS", "0")
    without = cuda_runner(wide(0), "float16")
    slots = [[runner.open()] for runner in (with_graphs, without)]
    for token in range(3):
        np.testing.assert_array_equal(step(with_graphs, slots[0], token), step(without, slots[1], token))
    assert without.describe()["launches"] == with_graphs.describe()["launches"]
