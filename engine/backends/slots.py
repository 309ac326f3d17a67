"""Which cache slots are in use and at which position each stands: bookkeeping every runner shares."""

from __future__ import annotations

import numpy as np

from engine.backends.runner import Batch
from engine.errors import InputError, Problem


class Slots:
    """Numbers 0, 1, 2, … given out lowest first, so that a batch opened together stands side by side in memory."""

    def __init__(self) -> None:
        self._free: list[int] = []
        self._positions: list[int | None] = []  # None = closed

    @property
    def capacity(self) -> int:
        """How many slots a cache must have room for."""
        return len(self._positions)

    def open(self) -> int:
        if self._free:
            slot = min(self._free)
            self._free.remove(slot)
        else:
            slot = len(self._positions)
            self._positions.append(None)
        self._positions[slot] = 0
        return slot

    def reset(self, slot: int) -> None:
        self._check(slot)
        self._positions[slot] = 0

    def close(self, slot: int) -> None:
        self._check(slot)
        self._positions[slot] = None
        self._free.append(slot)

    def advance(self, batch: Batch) -> None:
        """Move the batch's slots by its lengths; raises InputError when a sequence does not continue its slot."""
        problems = [
            Problem(f"slot {slot}", f"the next row at position {self._position(slot)}", f"{length} rows from {start}")
            for slot, start, length in zip(batch.slots.tolist(), batch.starts.tolist(), batch.lengths.tolist(), strict=True)
            if self._position(slot) != start or length < 1
        ]
        if len(set(batch.slots.tolist())) != len(batch.slots) or int(np.sum(batch.lengths)) != len(batch.ids):
            problems.append(Problem("batch", "each slot once, and as many ids as lengths add up to", f"{len(batch.ids)} ids"))
        if problems:
            raise InputError(problems)
        for slot, start, length in zip(batch.slots.tolist(), batch.starts.tolist(), batch.lengths.tolist(), strict=True):
            self._positions[slot] = start + length

    def _position(self, slot: int) -> int | None:
        return self._positions[slot] if 0 <= slot < len(self._positions) else None

    def _check(self, slot: int) -> None:
        if self._position(slot) is None:
            raise InputError(Problem("slot", "an open slot", str(slot)))
