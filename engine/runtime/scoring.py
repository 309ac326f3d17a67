"""Whole texts through the model, a chunk of rows at a time: log-probabilities of all tokens, or of the ones that came."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from engine.backends.runner import Want
from engine.errors import InputError, Problem
from engine.runtime.executor import CHUNK, RESULT_FLOATS, STEP_ROWS, Executor, Tap, groups

MOST_RESULT_BYTES = 2 << 30

Progress = Callable[[int, int], None]  # rows done, rows in all


@dataclass(frozen=True)
class Score:
    """token_nll [B, T - 1] float32: -log p(ids[:, t+1] | ids[:, :t+1]) in nats, NaN past the end of a shorter sequence.

    mean: over all tokens, NaN when there is none.  ppl: e^mean.
    """

    token_nll: np.ndarray
    mean: float
    ppl: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"token_nll": self.token_nll.tolist()}


def log_probs(executor: Executor, ids: np.ndarray, progress: Progress | None = None) -> np.ndarray:
    """ids [B, T] → float32 [B, T, vocab]; raises InputError above 2 GiB."""
    needed = ids.size * executor.vocab * 4
    if needed > MOST_RESULT_BYTES:
        found = f"{needed / 2**30:.1f} GiB for {list(ids.shape)} tokens × {executor.vocab}"
        raise InputError(Problem("ids", "a result of at most 2 GiB", found), hint="score(ids) gives the tokens' own log-probabilities")
    result = np.empty((*ids.shape, executor.vocab), np.float32)
    for sequence, start, rows in _feed(executor, list(ids), None, CHUNK, progress):
        result[sequence, start : start + len(rows)] = rows
    return result


def score(executor: Executor, rows: Sequence[np.ndarray], segment: int = CHUNK, progress: Progress | None = None) -> Score:
    """rows: B sequences of token ids of any length, fed `segment` tokens at a time."""
    token_nll = np.full((len(rows), max(len(row) for row in rows) - 1), np.nan, np.float32)
    inputs, targets = [row[:-1] for row in rows], [row[1:] for row in rows]
    total, count = 0.0, sum(len(row) for row in inputs)
    for sequence, start, nll in _feed(executor, inputs, targets, segment, progress):
        token_nll[sequence, start : start + len(nll)] = nll
        total += float(nll.sum(dtype=np.float64))
    mean = total / count if count else float("nan")
    with np.errstate(over="ignore"):
        return Score(token_nll, mean, float(np.exp(mean)))


def _feed(
    executor: Executor, inputs: Sequence[np.ndarray], targets: Sequence[np.ndarray] | None, chunk: int, progress: Progress | None
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield (sequence, its first row, the rows' results) chunk by chunk: -log p(target), or all log-probabilities without targets."""
    want: Want = "log_probs" if targets is None else "target_nll"
    most_rows = max(1, min(STEP_ROWS, RESULT_FLOATS // executor.vocab)) if targets is None else STEP_ROWS
    chunk = min(chunk, most_rows)
    done, total = 0, sum(len(row) for row in inputs)
    for group in groups([min(len(row), chunk) for row in inputs], most_rows):
        with executor.slots(len(group)) as slots:
            for start in range(0, max(len(inputs[i]) for i in group), chunk):
                live = [i for i in group if len(inputs[i]) > start]
                rows = [inputs[i][start : start + chunk] for i in live]
                result = executor.run(
                    slots[[i - group.start for i in live]],
                    np.full(len(live), start),
                    rows,
                    want,
                    None if targets is None else [targets[i][start : start + chunk] for i in live],
                )
                packed = result.log_probs if targets is None else result.nll
                assert packed is not None
                at = 0
                for i, row in zip(live, rows, strict=True):
                    yield i, start, packed[at : at + len(row)]
                    at += len(row)
                done += at
                if progress is not None:
                    progress(done, total)


def trace(executor: Executor, row: np.ndarray) -> Iterator[tuple[list[np.ndarray], np.ndarray]]:
    """One sequence [T], a chunk at a time: (residual stream after the embedding and after each layer, log-probabilities)."""
    chunk = max(1, min(CHUNK, RESULT_FLOATS // executor.vocab))
    with executor.slots(1) as slots:
        for start in range(0, len(row), chunk):
            hidden: list[np.ndarray] = []
            rows = [row[start : start + chunk]]
            result = executor.run(slots, np.array([start]), rows, "log_probs", tap=_into(hidden))
            assert result.log_probs is not None
            yield hidden, result.log_probs


def _into(found: list[np.ndarray]) -> Tap:
    return lambda _, hidden: found.append(hidden)
