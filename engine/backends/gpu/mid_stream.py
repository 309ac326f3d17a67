"""A decode step that benchmarks time: sequences in mid-stream, each with a slot and a ring of its own, full of random numbers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import torch

from engine.backends.gpu.graphs import DecodeSteps, Step
from engine.backends.gpu.recording import Results
from engine.backends.torch.cache import Rings


class MidStreamStep:
    """Layers over one row of each of several sequences; every call computes the same.

    hidden [rows, hidden] float32: what the layers read; slots, positions [rows]. results: of the last call, hidden [rows, hidden] after the
    layers, which the next call may write over. close() gives the slots back; a `with` statement does it at its end.
    """

    def __init__(
        self,
        steps: DecodeSteps,
        hidden: torch.Tensor,
        slots: np.ndarray,
        positions: np.ndarray,
        on_device: Callable[[], AbstractContextManager[object]],
        close: Callable[[], None],
    ) -> None:
        """steps: of hidden rows, for this alone; on_device: the guard around what starts kernels; close: called once."""
        self.hidden, self.slots, self.positions = hidden, slots, positions
        self.results: Results = ()
        self._steps = steps
        self._on_device = on_device
        self._close: Callable[[], None] | None = close
        self._filled: Step | None = None
        self()  # what it records is recorded before anybody takes the time

    def __call__(self) -> None:
        with torch.no_grad(), self._on_device():
            step = self._steps.of(len(self.slots))
            if step is not self._filled:  # new: the first call, or slots were opened since and the rings have moved
                step.fill(self.hidden, self.slots, self.positions)
                self._filled = step
            self.results = step.run()

    def close(self) -> None:
        if self._close is not None:
            self._close()
            self._close = None

    def __enter__(self) -> MidStreamStep:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def randomise(rings: Rings, slots: np.ndarray, random: torch.Generator) -> None:
    """Random keys and values in all places of the slots' rings."""
    for held in (rings.keys, rings.values):
        shape = (len(slots), *held.shape[1:])
        held[torch.from_numpy(slots).to(held.device)] = torch.randn(shape, generator=random, device=held.device).to(held.dtype)
