"""Decode steps of the GPU backends on buffers that stay in place, recorded once per batch bucket."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from engine.backends.gpu.recording import Record, Results
from engine.backends.gpu.rows import Rows, staged
from engine_kernels.gpu_ops import Sequences

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # beyond, multiples of the last
Inputs = np.ndarray | torch.Tensor  # indices of table rows [indices, rows] int64 on the host, or hidden [rows, hidden] float32
Work = Callable[[torch.Tensor, Rows], Results]  # inputs on the device, rows → results [rows, ..]


def bucket(rows: int) -> int:
    """The number of rows a step of `rows` rows is padded to."""
    return next((size for size in BUCKETS if rows <= size), -(-rows // BUCKETS[-1]) * BUCKETS[-1])


@dataclass
class Launches:
    """Kernels that steps started. calls: in all, by name, as the backend counts them; of_layers: by the layers of the last step."""

    calls: Counter[str]
    of_layers: int = 0

    @contextmanager
    def layers(self) -> Iterator[None]:
        """Around the layers of a step."""
        before = self.calls.total()
        yield
        self.of_layers = self.calls.total() - before


@dataclass(frozen=True)
class Surroundings:
    """What all steps of a runner share. spare: the slot of rows that only fill a bucket, whose ring no sequence reads."""

    record: Record
    launches: Launches
    spare: int
    device: torch.device


class DecodeSteps:
    """Steps in which every sequence brings one row."""

    def __init__(self, work: Work, around: Surroundings, *, hidden: int, indices: int = 0) -> None:
        """indices: how many indices of a row the work takes; 0: it takes rows of `hidden` numbers."""
        self._work = work
        self._around = around
        self._hidden = hidden
        self._indices = indices
        self._steps: dict[int, Step] = {}

    def __call__(self, inputs: Inputs, slots: np.ndarray, positions: np.ndarray) -> Results:
        """The work on sequences in slots at positions [rows]; the next step of as many rows may write over its results."""
        step = self.of(len(slots))
        step.fill(inputs, slots, positions)
        return tuple(result[: len(slots)] for result in step.run())

    def of(self, rows: int) -> Step:
        """The step that runs `rows` rows; while it is new, all of its rows are the spare slot's."""
        size = bucket(rows)
        if size not in self._steps:
            self._steps[size] = Step(self._work, self._around, size, self._hidden, self._indices)
        return self._steps[size]

    def forget(self) -> None:
        """Drop what was recorded: the rings have moved."""
        self._steps.clear()


class Step:
    """The buffers of one bucket and the recorded work that reads them."""

    def __init__(self, work: Work, around: Surroundings, size: int, hidden: int, indices: int) -> None:
        self._work = work
        self._around = around
        device, launches = around.device, around.launches
        # Slots, positions, indices: each at a multiple of 16 bytes, for kernels are compiled apart for any other place.
        self._numbers = torch.zeros((2 + indices, max(size, 2)), dtype=torch.int64, device=device)
        self._numbers[0] = around.spare
        slots, positions = self._numbers[:2, :size]
        self._inputs = self._numbers[2:, :size] if indices else torch.zeros((size, hidden), device=device)
        order = torch.arange(size, device=device)
        single = Sequences(order, torch.ones_like(order), slots, offsets=positions, positions=positions)
        none = np.zeros(0, np.int64)
        self._rows = Rows(slots, positions, order, single, None, none, none)
        self._calls: Counter[str] = Counter()
        self._of_layers = launches.of_layers
        self._replay = around.record(self._uncounted)

    def fill(self, inputs: Inputs, slots: np.ndarray, positions: np.ndarray) -> None:
        """What the next run reads; one copy from the host, which waits for nothing."""
        rows = len(slots)
        numbers = np.zeros(self._numbers.shape, np.int64)
        numbers[0] = self._around.spare
        numbers[:2, :rows] = slots, positions
        if isinstance(inputs, np.ndarray):
            numbers[2:, :rows] = inputs
        else:
            self._inputs[:rows] = inputs
        self._numbers.copy_(staged(numbers, self._around.device), non_blocking=True)

    def run(self) -> Results:
        """The work on what the buffers hold; counts its launches, which a replay starts unseen."""
        results = self._replay()
        self._around.launches.calls.update(self._calls)
        self._around.launches.of_layers = self._of_layers
        return results

    def _uncounted(self) -> Results:
        """The work, its launches noted for `run` to count: the work runs to be recorded as well, and does not run in a replay."""
        launches = self._around.launches
        before = launches.calls.copy()
        results = self._work(self._inputs, self._rows)
        self._calls, self._of_layers = launches.calls - before, launches.of_layers
        launches.calls -= self._calls
        return results
