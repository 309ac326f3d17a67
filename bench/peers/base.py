"""What the peers share: embedding and vocabulary of plain PyTorch, and a state per set of slots."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from engine.backends.fold import fold
from engine.backends.plan import compile_stack
from engine.backends.runner import Batch, Limits, StepResult
from engine.backends.slots import Slots
from engine.backends.torch.cache import Groups
from engine.backends.torch.runner import TorchRunner, build
from engine.checkpoint import Checkpoint
from engine.errors import InputError, Problem


class Skipped(Exception):
    """A peer that cannot run here; the message is the reason."""


class PeerRunner(ABC):
    """Runner over rectangular batches of streams that started together; only `start` and `layers` differ between peers.

    prepared: seconds spent exporting and compiling so far, never part of a sample.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: str, threads: int) -> None:
        self.stack = compile_stack(checkpoint.spec)
        self.threads = threads
        self.prepared = 0.0
        outside = build(replace(self.stack, layers=()), replace(fold(checkpoint), layers=()), Limits(dtype, "cpu", threads))
        assert isinstance(outside, TorchRunner)
        self._embedding, self._head = outside.embedding, outside.head
        self._slots = Slots()
        self._states: dict[tuple[int, ...], Any] = {}

    @abstractmethod
    def start(self, batch: int) -> Any:
        """The state of `batch` streams at their start."""

    @abstractmethod
    def layers(self, hidden: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        """hidden [batch, rows, hidden] float32 through all layers, and the state after it."""

    def open(self) -> int:
        return self._slots.open()

    def reset(self, slot: int) -> None:
        self._slots.reset(slot)
        self._forget(slot)

    def close(self, slot: int) -> None:
        self._slots.close(slot)
        self._forget(slot)

    def step(self, batch: Batch) -> StepResult:
        sequences, rows = len(batch.lengths), int(batch.lengths[0])
        if (batch.lengths != rows).any():
            raise InputError(Problem("batch", "sequences of one length for a peer", str(np.unique(batch.lengths).tolist())))
        with torch.no_grad():
            self._slots.advance(batch)
            key = tuple(batch.slots.tolist())
            state = self._states[key] if key in self._states else self.start(sequences)
            embedded = self._embedding.embed(batch.ids, None, None).reshape(sequences, rows, -1)
            hidden, self._states[key] = self.layers(embedded, state)
            hidden = self._head.final_norm(hidden.reshape(sequences * rows, -1))
            return self._head.result(hidden, batch, Groups(batch, torch.device("cpu")))

    def describe(self) -> dict[str, Any]:
        return {"operations": type(self).__module__, "threads": self.threads}

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Counts what runs inside as preparation."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.prepared += time.perf_counter() - start

    def _forget(self, slot: int) -> None:
        self._states = {slots: state for slots, state in self._states.items() if slot not in slots}
