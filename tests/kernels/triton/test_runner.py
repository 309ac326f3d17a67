"""The `triton` backend: the published outputs, the oracle over random models in every way a model is used, and refusals with a reason."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("triton", reason="Triton is not installed: pip install 'headcount[gpu]'", exc_type=ImportError)

import torch

import engine
from engine.backends.fold import fold
from engine.backends.gpu.graphs import bucket
from engine.backends.gpu.runner import GpuRunner
from engine.backends.gpu.triton import build
from engine.backends.plan import compile_stack
from engine.backends.runner import Batch, Limits
from engine.backends.torch.head import TorchHead
from engine.backends.torch.runner import tensors_of
from engine_kernels import backends
from engine_kernels.testing import assert_close, difference
from tests.backends.test_oracle_properties import Case
from tests.oracle.vocabulary import log_probs
from tests.support import engine_side
from tests.support.random_specs import random_checkpoint

ROOT = Path(__file__).parents[3]
FIXTURES = ROOT / "tests" / "fixtures"
EXPECTED_WITHIN = 2e-4  # of the published code's own float32


def triton_runner(seed: int, dtype: str = "float32", quantization: str | None = None) -> GpuRunner:
    checkpoint = random_checkpoint(seed)
    runner = build(compile_stack(checkpoint.spec), fold(checkpoint), Limits(dtype, device="auto", quantization=quantization))
    assert isinstance(runner, GpuRunner)
    return runner


@pytest.mark.parametrize("name", ["aiha-char/checkpoint.ckpt", "aiha-adaptive/checkpoint.ckpt", "fair-pers/checkpoint.pt", "txl/model.pt"])
def test_reproduces_the_published_code(name: str) -> None:
    expected = np.load((FIXTURES / name).with_name("expected.npz"))
    with engine.load(FIXTURES / name, backend="triton", dtype="float32") as model:
        if "log_probs" in expected:
            wanted = expected["log_probs"]
            assert np.abs(model.log_probs(expected["ids"])[:, : wanted.shape[1]] - wanted).max() <= EXPECTED_WITHIN
        else:
            assert np.abs(model.score(expected["ids"]).token_nll - expected["token_nll"]).max() <= EXPECTED_WITHIN


@pytest.mark.parametrize("name", ["dense", "gated"])
def test_reproduces_the_trained_model(name: str) -> None:
    """The start of one row of the fixture: a segment of 64 and the first tokens of the next."""
    expected = np.load(FIXTURES / "shakespeare-char" / "expected.npz")
    ids, wanted = expected["ids"][:1, :70], expected[f"token_nll_{name}"][:1, :69]
    with engine.load(ROOT / "examples" / "shakespeare" / f"{name}.ckpt", backend="triton", dtype="float32") as model:
        assert np.abs(model.score(ids).token_nll - wanted).max() <= EXPECTED_WITHIN


# Few heads each, since the interpreter pays by the head; every dialect, norm and start between them, empty layers, segments, spans.
SEEDS = (0, 11, 16, 29, 70, 86, 102, 105, 109, 116)


@pytest.mark.parametrize("seed", SEEDS)
def test_keeps_to_the_oracle(seed: int) -> None:
    """Whole, with the stream of every layer; then two sequences by chunks, single rows beside several; targets and next token."""
    case, runner = Case.draw(seed), triton_runner(seed)
    ids, streams = case.ids, {}
    case.check(engine_side.whole(runner, ids, tap=lambda layer, rows: streams.__setitem__(layer, rows.copy())), "whole")
    assert sorted(streams) == list(range(-1, len(runner.stack.layers)))
    for layer, rows in streams.items():
        assert difference(rows, case.exact.streams[layer + 1]) <= case.allowed_streams, f"stream after layer {layer}"

    first, second, cut = runner.open(), runner.open(), len(ids) // 2
    mixed = engine_side.step(runner, [ids[:1], ids[:cut]], [second, first], [0, 0]).log_probs
    case.check(mixed[:1], "one row beside several")
    case.check(mixed[1:], "several rows beside one")
    places = np.arange(1, cut + 1)  # the second's rows after its first, then the first's next
    targets = np.where(places == 1, -1, ids[7 * places % len(ids)])
    nll = engine_side.step(runner, [ids[1:cut], ids[cut : cut + 1]], [second, first], [1, cut], "target_nll", targets).nll
    wanted = -case.exact.log_probs[places, targets]
    assert np.array_equal(np.isnan(nll), targets < 0)
    assert difference(nll[targets >= 0], wanted[targets >= 0]) <= case.allowed
    one = engine_side.step(runner, [ids[cut + 1 : cut + 2], ids[cut : cut + 1]], [first, second], [cut + 1, cut], want="next").next
    for row, head in enumerate(one.head):
        exact = case.exact.log_probs[cut + 1 - row][: runner.stack.head.clusters[0].size]
        assert difference(head[: len(exact)], exact) <= case.allowed


@pytest.mark.parametrize("seed", [11, 70])
def test_token_by_token_keeps_to_the_oracle(seed: int) -> None:
    """The first 14 tokens; rings of 13 and 5 slots wrap."""
    case = Case.draw(seed)
    case.check(engine_side.one_by_one(triton_runner(seed), case.ids[:14]), "token by token")


def test_three_sequences_of_one_row_are_padded_to_four_and_keep_to_the_oracle() -> None:
    """Slots out of order, more slots opened between steps, a bucket used again."""
    case, runner = Case.draw(70), triton_runner(70)
    slots = [runner.open() for _ in range(3)][::-1]
    for t in range(7):
        rows = engine_side.step(runner, [case.ids[t : t + 1]] * 3, slots, [t] * 3).log_probs
        for row in rows:
            assert difference(row, case.exact.log_probs[t]) <= case.allowed
        runner.open()  # now and then the rings move
    assert [bucket(rows) for rows in (1, 3, 4, 200, 256, 257, 1000)] == [1, 4, 4, 256, 256, 512, 1024]


@pytest.mark.parametrize("seed", [2, 5, 8, 15, 20, 31])
def test_scores_of_given_words_in_every_kind_of_vocabulary(seed: int) -> None:
    """Plain and adaptive, tied, projected, biased, rows without a target; p is the torch backend's vocabulary on the same rows."""
    checkpoint, runner, rng = random_checkpoint(seed), triton_runner(seed), np.random.default_rng(seed)
    hidden = torch.from_numpy(rng.standard_normal((70, runner.stack.hidden)).astype(np.float32)).to(runner.device)
    targets = rng.integers(-1, runner.stack.vocab, 70)
    places = np.zeros(1, np.int64)
    batch = Batch(targets, places, places, np.array([70]), "target_nll", targets)
    last = torch.tensor([69], device=runner.device)
    found = runner.vocabulary.result(hidden, batch, last).nll
    torch_head = TorchHead(runner.stack, tensors_of(fold(checkpoint).model, torch.float32, runner.device))
    plain = torch_head.result(hidden, batch, last).nll
    spec, weights = checkpoint.spec.to_dict(), {name: weight.astype(np.float64) for name, weight in checkpoint.weights.items()}
    given = np.flatnonzero(targets >= 0)
    exact = [-log_probs(spec, weights, row)[word] for row, word in zip(hidden.double().cpu().numpy()[given], targets[given], strict=True)]
    assert np.array_equal(np.isnan(found), targets < 0)
    assert_close(found[given], plain[given], exact, "float32", "scores")


def test_a_slot_starts_afresh_when_given_out_again_and_when_reset() -> None:
    ids, runner = np.arange(7) % 3, triton_runner(11)
    first = engine_side.whole(runner, ids)
    np.testing.assert_array_equal(engine_side.whole(runner, ids), first)
    slot = runner.open()
    engine_side.step(runner, [ids[:2]], [slot], [0])
    runner.reset(slot)
    np.testing.assert_array_equal(engine_side.step(runner, [ids], [slot], [0]).log_probs, first)


def test_launches_of_a_step_are_counted_and_none_are_of_layers_without_heads() -> None:
    for seed in range(40):
        checkpoint = random_checkpoint(seed)
        attentions = [layer.attention for layer in checkpoint.spec.layers]
        if 0 in [a.heads for a in attentions] and any(a.heads for a in attentions):
            break
    runner = triton_runner(seed)
    engine_side.whole(runner, np.zeros(1, np.int64))
    assert "score_words" not in runner.describe()["launches"]  # only scores of given tokens need it
    launches, layers = runner.describe()["launches"], sum(a.heads > 0 for a in attentions)
    assert launches["project_heads"] == launches["attend_ring"] == layers < len(attentions)
    assert 4 * layers <= runner.describe()["launches_of_last_step"] <= sum(launches.values())  # the embedding stands outside the step


REFUSED = """
import engine
try:
    engine.load("tests/fixtures/txl/model.pt", backend="triton", dtype={dtype!r}, device={device!r})
except engine.errors.BackendUnavailable as error:
    print(error)
"""


def refusal(interpret: str, dtype: str = "float32", device: str = "auto") -> str:
    """What load answers in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", REFUSED.format(dtype=dtype, device=device)],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": interpret, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_it_cannot_run_is_refused_with_its_reason() -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        assert "no GPU driver" in refusal("0") and "TRITON_INTERPRET=1" in refusal("0")
    assert "runs on GPUs" in refusal("0", device="cpu")
    assert "bfloat16" in refusal("1", dtype="bfloat16")
    assert "device='cuda'" in refusal("1", device="cuda")


def test_is_chosen_only_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backends.TRIED, "triton", None)
    with engine.load(FIXTURES / "txl" / "model.pt") as model:
        refused = dict(model.explain().refusals)
    assert "when named" in refused["triton"]
