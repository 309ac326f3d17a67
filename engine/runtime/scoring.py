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

    mean: over all tokens, NaN when there is none.  ppl: e^mean.  windows, stride: how many windows the sequences were cut into and the
    tokens from the start of one to the next, None where they were not cut; a token is then predicted from those before it in its window,
    and NaN where there are none.
    """

    token_nll: np.ndarray
    mean: float
    ppl: float
    windows: int | None = None
    stride: int | None = None

    @property
    def tokens(self) -> int:
        """How many tokens the mean is over."""
        return int((~np.isnan(self.token_nll)).sum())

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


def score(
    executor: Executor,
    rows: Sequence[np.ndarray],
    segment: int = CHUNK,
    progress: Progress | None = None,
    window: tuple[int, int] | None = None,
) -> Score:
    """rows: B sequences of token ids of any length, fed `segment` tokens at a time.

    window (size, stride): sequences are cut into windows of at most `size` tokens, `stride` apart, each from the start of a stream. Of a
    window count the tokens that none before it held: all of a sequence but its first, and at stride = size but the first of each window.
    The protocol of arXiv 1809.10853 §5.3, and of "Perplexity of fixed-length models" in the documentation of transformers.
    """
    longest = max(len(row) for row in rows)
    size, stride = window or (longest, longest)
    starts = [(index, start) for index, row in enumerate(rows) for start in _window_starts(len(row), size, stride)]
    inputs, targets = [], []
    for index, start in starts:
        tokens = rows[index][start : start + size]
        inputs.append(tokens[:-1])
        targets.append(tokens[1:])
    token_nll = np.full((len(rows), longest - 1), np.nan, np.float32)
    total, count = 0.0, 0
    for number, at, nll in _feed(executor, inputs, targets, segment, progress):
        index, start = starts[number]
        held = max(size - stride - 1, 0) if start else 0  # predictions of this window that the one before made
        new = nll[max(held - at, 0) :]
        column = start + max(at, held)
        token_nll[index, column : column + len(new)] = new
        total, count = total + float(new.sum(dtype=np.float64)), count + len(new)
    mean = total / count if count else float("nan")
    with np.errstate(over="ignore"):
        ppl = float(np.exp(mean))
    return Score(token_nll, mean, ppl) if window is None else Score(token_nll, mean, ppl, len(starts), stride)


def _window_starts(length: int, size: int, stride: int) -> range:
    """The last window is the first that reaches the end."""
    return range(0, max(length - size, 0) + stride, stride)


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
