"""A model ready to be timed: its runner, and streams that feed it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.backends.choice import build_runner, choose_backend, require_limits
from engine.backends.fold import fold
from engine.backends.plan import compile_stack
from engine.backends.runner import Batch, Limits, Runner, StepResult, Want
from engine.checkpoint import Checkpoint
from engine_kernels.backends import Wanted


@dataclass(frozen=True)
class EngineSettings:
    """What every engine of a run shares; threads None = the backend's own number."""

    backend: str
    dtype: str
    threads: int | None = None

    @staticmethod
    def resolved(backend: str, dtype: str, threads: int | None) -> EngineSettings:
        """From the words a user gives; raises BackendUnavailable or InputError for those that cannot be had."""
        limits = require_limits(dtype, "auto", threads, None)
        return EngineSettings(choose_backend(backend, Wanted(dtype=limits.dtype)).name, limits.dtype, threads)


def build(checkpoint: Checkpoint, settings: EngineSettings) -> Runner:
    """The runner of a checkpoint."""
    limits = Limits(settings.dtype, "auto", settings.threads)
    return build_runner(settings.backend, compile_stack(checkpoint.spec), fold(checkpoint), limits)


class Stream:
    """`batch` sequences of a runner, fed side by side; close it or use it in a with block."""

    def __init__(self, runner: Runner, batch: int) -> None:
        self._runner = runner
        self._slots = np.array([runner.open() for _ in range(batch)])
        self._position = 0

    def step(self, ids: np.ndarray, want: Want, targets: np.ndarray | None = None) -> StepResult:
        """Feed ids [batch, rows], targets likewise."""
        batch, rows = ids.shape
        starts, lengths = np.full(batch, self._position), np.full(batch, rows)
        self._position += rows
        packed = None if targets is None else targets.reshape(-1)
        return self._runner.step(Batch(ids.reshape(-1), self._slots, starts, lengths, want, packed))

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the slots back."""
        for slot in self._slots.tolist():
            self._runner.close(slot)
