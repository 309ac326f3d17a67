"""log_probs and score on a fake runner: every chunk in its place, no more rows at once than the budget."""

from __future__ import annotations

import numpy as np
import pytest

from engine.errors import InputError
from engine.runtime import scoring
from engine.runtime.executor import CHUNK, STEP_ROWS, Executor
from engine.runtime.scoring import log_probs, score, trace
from tests.support.fake_runner import FakeRunner

LENGTHS = (1, 2, 63, 65, CHUNK, CHUNK + 1, 2 * CHUNK + 3)


def random_ids(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 12, shape)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("batch", [1, 3, 9])
def test_log_probs_of_every_row(batch: int, length: int) -> None:
    runner, ids = FakeRunner(), random_ids(batch, length)
    found = log_probs(Executor(runner), ids)
    assert found.dtype == np.float32 and found.shape == (batch, length, 12)
    for row, expected in zip(found, ids, strict=True):
        np.testing.assert_allclose(row, runner.log_probs(expected.tolist()), rtol=0, atol=1e-6)
    assert max(len(b.ids) for b in runner.batches) <= STEP_ROWS and runner.open_slots == 0


def test_log_probs_of_a_large_vocabulary_come_in_smaller_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "RESULT_FLOATS", 12 * 7)
    runner, ids = FakeRunner(), random_ids(3, 40)
    found = log_probs(Executor(runner), ids)
    np.testing.assert_allclose(found[1], runner.log_probs(ids[1].tolist()), rtol=0, atol=1e-6)
    assert max(len(b.ids) for b in runner.batches) <= 7


def test_log_probs_above_2_gib_point_to_score() -> None:
    runner = FakeRunner()
    with pytest.raises(InputError, match="score"):
        log_probs(Executor(runner), np.zeros((1, 2**31 // 48 + 1), np.int64))
    assert runner.batches == []


@pytest.mark.parametrize("segment", [1, 7, CHUNK, 5000])
def test_score_of_ragged_sequences(segment: int) -> None:
    runner = FakeRunner()
    rows = [random_ids(n) for n in LENGTHS]
    found = score(Executor(runner), rows, segment)
    assert found.token_nll.shape == (len(rows), max(LENGTHS) - 1) and found.token_nll.dtype == np.float32
    nll = [-runner.log_probs(row.tolist())[np.arange(len(row) - 1), row[1:]] for row in rows]
    for row, expected in zip(found.token_nll, nll, strict=True):
        np.testing.assert_allclose(row[: len(expected)], expected, rtol=0, atol=1e-6)
        assert np.isnan(row[len(expected) :]).all()
    mean = np.concatenate(nll).mean(dtype=np.float64)  # weighted by tokens, not by sequences
    assert found.mean == pytest.approx(mean, abs=1e-6) and found.ppl == pytest.approx(np.exp(mean), rel=1e-5)
    assert sum(len(b.ids) for b in runner.batches) == sum(LENGTHS) - len(LENGTHS) and runner.open_slots == 0


def test_score_of_single_tokens_is_empty() -> None:
    found = score(Executor(FakeRunner()), [np.array([1]), np.array([2])])
    assert found.token_nll.shape == (2, 0) and np.isnan(found.mean) and np.isnan(found.ppl)


def test_progress_counts_rows_up_to_all() -> None:
    calls: list[tuple[int, int]] = []
    score(Executor(FakeRunner()), [random_ids(600), random_ids(20)], progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (618, 618) and [done for done, _ in calls] == sorted({done for done, _ in calls})


def test_trace_gives_hidden_states_beside_log_probabilities() -> None:
    runner, ids = FakeRunner(), random_ids(CHUNK + 5)
    parts = list(trace(Executor(runner), ids))
    assert [len(rows) for _, rows in parts] == [CHUNK, 5]
    assert [[h.shape for h in hidden] for hidden, _ in parts] == [[(CHUNK, 4)], [(5, 4)]]
    np.testing.assert_allclose(np.concatenate([rows for _, rows in parts]), runner.log_probs(ids.tolist()), rtol=0, atol=1e-6)
    assert runner.open_slots == 0
