"""Stand-ins for a CUDA graph where there is no GPU: what records the work of a decode step, and a runner that records by it."""

from __future__ import annotations

import pytest

from engine.backends.gpu.recording import Record, Replay, Results


def once(work: Replay) -> Replay:
    """The work runs when it is recorded and never again: what a replay leaves out must not be needed for counting. Results are stale."""
    results = work()
    return lambda: results


def in_place(work: Replay) -> Replay:
    """A replay computes, and writes over the results of the one before, as a graph does."""
    results = work()

    def replay() -> Results:
        for result, new in zip(results, work(), strict=True):
            result.copy_(new)
        return results

    return replay


def record_by(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runners built from here on record their steps so."""
    monkeypatch.setattr("engine.backends.gpu.runner.recording", lambda device: record)
