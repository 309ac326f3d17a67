"""Decode steps of the GPU backends on buffers that stay in place: on a GPU, one CUDA graph per batch bucket."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from engine.model.gpu_rows import Rows
from engine_kernels.gpu_ops import Sequences

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # beyond, multiples of the last
Work = Callable[[torch.Tensor, Rows], tuple[torch.Tensor, ...]]  # hidden [rows, hidden] → results [rows, ..]


def bucket(rows: int) -> int:
    """The number of rows a step of `rows` rows is padded to."""
    return next((size for size in BUCKETS if rows <= size), -(-rows // BUCKETS[-1]) * BUCKETS[-1])


class DecodeSteps:
    """Steps in which every sequence brings one row. Rows that only fill a bucket belong to the spare slot, whose ring is nobody's."""

    def __init__(self, work: Work, hidden: int, spare: int, device: torch.device) -> None:
        self._work = work
        self._hidden = hidden
        self._spare = spare
        self._device = device
        self._steps: dict[int, _Step] = {}

    def __call__(self, hidden: torch.Tensor, slots: np.ndarray, positions: np.ndarray) -> tuple[torch.Tensor, ...]:
        """The work on hidden [rows, hidden] float32 of sequences in slots at positions [rows]."""
        return self._step(len(hidden))(hidden, slots, positions)

    def replay(self, rows: int) -> Callable[[], None]:
        """A step of the bucket of `rows` rows, all of the spare slot."""
        step = self._step(rows)
        nothing = np.zeros(0, np.int64)
        step(torch.zeros((0, self._hidden), device=self._device), nothing, nothing)
        return step.run

    def _step(self, rows: int) -> _Step:
        size = bucket(rows)
        if size not in self._steps:
            self._steps[size] = _Step(self._work, size, self._hidden, self._spare, self._device)
        return self._steps[size]

    def forget(self) -> None:
        """Drop what was captured: the rings have moved."""
        self._steps.clear()


class _Step:
    """The buffers of one bucket, and on a GPU the graph that reads and writes them."""

    def __init__(self, work: Work, size: int, hidden: int, spare: int, device: torch.device) -> None:
        self._work = work
        self._spare = spare
        self._hidden = torch.zeros((size, hidden), device=device)
        self._places = torch.zeros((2, size), dtype=torch.int64, device=device)  # slots, positions
        self._places[0] = spare
        order = torch.arange(size, device=device)
        slots, positions = self._places
        single = Sequences(order, torch.ones_like(order), slots, offsets=positions, positions=positions)
        none = np.zeros(0, np.int64)
        self._rows = Rows(slots, positions, order, single, None, none, none)
        self._graph: torch.cuda.CUDAGraph | None = None
        if device.type == "cuda":
            self._capture()

    def __call__(self, hidden: torch.Tensor, slots: np.ndarray, positions: np.ndarray) -> tuple[torch.Tensor, ...]:
        places = np.zeros(self._places.shape, np.int64)
        places[0] = self._spare
        places[:, : len(slots)] = slots, positions
        self._places.copy_(torch.from_numpy(places))
        self._hidden[: len(hidden)] = hidden
        self.run()
        return tuple(result[: len(hidden)].clone() for result in self._results)  # the next replay writes over them

    def run(self) -> None:
        """The work on what the buffers hold."""
        if self._graph is None:
            self._results = self._work(self._hidden, self._rows)
        else:
            self._graph.replay()

    def _capture(self) -> None:
        """Run once aside, so that every kernel is compiled, then record; all rows are the spare slot's."""
        aside: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            self._work(self._hidden, self._rows)
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._results = self._work(self._hidden, self._rows)
