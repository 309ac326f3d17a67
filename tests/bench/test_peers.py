"""The peers answer as the torch backend does, on the geometry with a layer that keeps no head."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch

from bench.core import cases
from bench.core.engines import EngineSettings, build
from bench.core.gate import Probe
from bench.peers import table
from bench.peers.base import PeerRunner, Skipped
from bench.peers.compiled import CompiledRunner
from bench.peers.plain import PlainStack
from bench.peers.published import PublishedRunner, shifted
from bench.peers.table import PEERS, Peer
from engine.checkpoint import Checkpoint
from engine.errors import InputError
from engine_kernels.testing import difference

KEPT = ((0, 2, 3), (), (1,))


class EagerRunner(PeerRunner):
    """The module that is compiled and exported, as it stands."""

    def __init__(self, checkpoint: Checkpoint, dtype: str, threads: int) -> None:
        super().__init__(checkpoint, dtype, threads)
        self._plain = PlainStack(checkpoint, dtype)

    def start(self, batch: int) -> list[torch.Tensor]:
        return self._plain.start(batch)

    def layers(self, hidden: torch.Tensor, state: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        hidden, *state = self._plain(hidden, *state)
        return hidden, state


@pytest.fixture(scope="module")
def model() -> Checkpoint:
    return cases.compact(cases.dense_model(cases.TINY, vocabulary=True), KEPT)


def peer(name: str) -> Peer:
    return next(peer for peer in PEERS if peer.name == name)


def exported(name: str) -> Any:
    missing = [package for package in peer(name).packages if find_spec(package) is None]
    return pytest.param(peer(name).build, marks=pytest.mark.skipif(bool(missing), reason=f"{missing} not installed"))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("make", [PublishedRunner, EagerRunner, exported("onnxruntime float32"), exported("openvino float32")])
def test_a_peer_answers_as_the_torch_backend(model: Checkpoint, make: Any, batch: int) -> None:
    rows = cases.TINY.rows
    probe = Probe.draw(model.spec.vocab, batch, rows, rows, seed=3)
    exact = probe.whole(build(model, EngineSettings("torch", "float32", 1)))
    runner = make(model, "float32", 1)
    assert difference(probe.prefill(runner), exact) <= 1e-5
    one = Probe(probe.ids, probe.targets, 1)
    assert difference(one.decode(runner), exact) <= 1e-5  # more tokens than the window holds


def test_the_exported_module_keeps_narrow_weights_narrow(model: Checkpoint) -> None:
    plain = PlainStack(model, "bfloat16")
    assert plain.every[0].qkv.dtype == plain.start(1)[0].dtype == torch.bfloat16
    hidden, *_ = plain(torch.randn(1, 2, model.spec.hidden), *plain.start(1))
    assert hidden.dtype == torch.float32


def test_scores_by_distance_move_under_their_keys() -> None:
    rows, memory = 3, 4
    by_distance = torch.arange(rows * (memory + rows)).float().view(1, 1, rows, memory + rows)
    moved = shifted(by_distance)
    for row in range(rows):
        for key in range(row + memory + 1):
            distance = row + memory - key
            assert moved[0, 0, row, key] == by_distance[0, 0, row, memory + rows - 1 - distance]


def test_sequences_of_a_peer_have_one_length(model: Checkpoint) -> None:
    from engine.backends.runner import Batch

    runner = PublishedRunner(model, "float32", 1)
    slots = np.array([runner.open(), runner.open()])
    with pytest.raises(InputError, match="one length"):
        runner.step(Batch(np.zeros(3, np.int64), slots, np.zeros(2, np.int64), np.array([1, 2]), "hidden"))


def test_a_closed_stream_leaves_nothing_to_the_next(model: Checkpoint) -> None:
    probe = Probe.draw(model.spec.vocab, 2, 5, 2, seed=4)
    runner = PublishedRunner(model, "float32", 1)
    assert np.array_equal(probe.prefill(runner), probe.prefill(runner))


def test_no_more_is_compiled_than_allowed(model: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.peers.compiled.MOST", 0)
    monkeypatch.setattr(CompiledRunner, "done", set())
    runner = CompiledRunner(model, "float32", 1)
    with pytest.raises(Skipped, match="0 configurations"):
        runner.layers(torch.zeros(1, 1, model.spec.hidden), runner.start(1))


def test_who_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peer("cpu float32").refusal() is None and peer("published float32").refusal() is None
    assert peer("openvino int8").never is not None
    monkeypatch.setattr(table, "find_spec", lambda package: None if package.startswith("o") else object())
    assert peer("onnxruntime float32").refusal() == "onnx, onnxruntime not installed"
    assert peer("openvino int8").refusal() == "onnx, openvino not installed"
    assert len({peer.name for peer in PEERS}) == len(PEERS)
