"""The one caller of a Runner: serialises threads, hands out slots, cuts long inputs into chunks of rows."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from engine.backends.runner import Batch, Runner, StepResult, Want
from engine.errors import InputError, Problem
from engine.runtime.sampler import Draw, Request, sample

CHUNK = 256  # rows of one sequence in a step
STEP_ROWS = 1024  # rows of all sequences in a step
RESULT_FLOATS = 1 << 25  # numbers of a step's log-probabilities, 128 MiB

Tap = Callable[[int, np.ndarray], None]


class Executor:
    """A Runner that several threads may use: one step at a time, each slot its caller's own."""

    def __init__(self, runner: Runner) -> None:
        self.outputs = runner.stack.head.clusters
        self.vocab = runner.stack.vocab
        self.stack = runner.stack
        self._runner: Runner | None = runner
        self._lock = threading.Lock()
        self._given_back: deque[int] = deque()

    def open(self) -> int:
        with self._locked() as runner:
            return runner.open()

    def give_back(self, slots: Sequence[int]) -> None:
        """Close slots, now or, while another step runs, before the next one.

        Never waits: the garbage collector may end an abandoned stream in the middle of a step of this very thread.
        """
        self._given_back.extend(slots)
        if self._lock.acquire(blocking=False):
            try:
                self._close_given_back()
            finally:
                self._lock.release()

    @contextmanager
    def slots(self, count: int) -> Iterator[np.ndarray]:
        """`count` fresh slots [count] for the length of a with block."""
        opened: list[int] = []
        try:
            while len(opened) < count:
                opened.append(self.open())
            yield np.array(opened)
        finally:
            self.give_back(opened)

    def run(
        self,
        slots: np.ndarray,
        starts: np.ndarray,
        rows: Sequence[np.ndarray],
        want: Want,
        targets: Sequence[np.ndarray] | None = None,
        tap: Tap | None = None,
    ) -> StepResult:
        """One step over rows[s] of each sequence s, which continue slot slots[s] at position starts[s]."""
        with self._locked() as runner:
            return runner.step(_batch(slots, starts, rows, want, targets, tap))

    def run_bidirectional(self, sequences: Sequence[Sequence[np.ndarray]], want: Want, tap: Tap | None = None) -> StepResult:
        """One step over whole sequences of a bidirectional stack, as bidirectional_batch takes them."""
        with self._locked() as runner:
            return runner.step(bidirectional_batch(sequences, want, tap))

    def draw(self, slots: np.ndarray, starts: np.ndarray, rows: Sequence[np.ndarray], requests: Sequence[Request]) -> list[Draw]:
        """One step, and the token that follows each sequence's last row."""
        with self._locked() as runner:
            result = runner.step(_batch(slots, starts, rows, "next"))
            assert result.next is not None
            return sample(result.next, self.outputs, requests)

    def close(self) -> None:
        """Let the runner go; every later call raises InputError."""
        with self._lock:
            self._runner = None

    def check_open(self) -> None:
        """Raise InputError when the model is closed."""
        if self._runner is None:
            raise InputError(Problem("model", "an open model", "a closed one"), hint="load it again")

    @contextmanager
    def _locked(self) -> Iterator[Runner]:
        with self._lock:
            self.check_open()
            assert self._runner is not None
            self._close_given_back()
            yield self._runner

    def _close_given_back(self) -> None:
        while self._given_back:
            slot = self._given_back.popleft()
            if self._runner is not None:
                self._runner.close(slot)


def bidirectional_batch(sequences: Sequence[Sequence[np.ndarray]], want: Want, tap: Tap | None = None) -> Batch:
    """Whole sequences packed, each (ids, positions, token types) [rows] of its visible tokens."""
    ids, positions, token_types = (np.concatenate(parts) for parts in zip(*sequences, strict=True))
    lengths = np.array([len(sequence[0]) for sequence in sequences], np.int64)
    slots, starts = np.arange(len(sequences)), np.zeros(len(sequences), np.int64)
    return Batch(ids, slots, starts, lengths, want, tap=tap, positions=positions, token_types=token_types)


def groups(lengths: Sequence[int], most_rows: int = STEP_ROWS) -> Iterator[range]:
    """Cut sequences of `lengths` rows into runs that stay, padded to their longest, within `most_rows` rows (or are one sequence)."""
    first = 0
    while first < len(lengths):
        longest, stop = lengths[first], first + 1
        while stop < len(lengths) and max(longest, lengths[stop]) * (stop + 1 - first) <= most_rows:
            longest, stop = max(longest, lengths[stop]), stop + 1
        yield range(first, stop)
        first = stop


def _batch(
    slots: np.ndarray,
    starts: np.ndarray,
    rows: Sequence[np.ndarray],
    want: Want,
    targets: Sequence[np.ndarray] | None = None,
    tap: Tap | None = None,
) -> Batch:
    return Batch(
        ids=np.concatenate(rows).astype(np.int64, copy=False),
        slots=np.asarray(slots, np.int64),
        starts=np.asarray(starts, np.int64),
        lengths=np.array([len(row) for row in rows], np.int64),
        want=want,
        targets=None if targets is None else np.concatenate(targets).astype(np.int64, copy=False),
        tap=tap,
    )
