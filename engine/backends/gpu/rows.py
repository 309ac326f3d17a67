"""A batch on the device: its rows' slots and positions, and its sequences apart by whether they bring one row or several."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from engine.backends.runner import Batch
from engine_kernels.gpu_ops import Sequences


@dataclass(frozen=True)
class Rows:
    """slots, positions, order [rows] int64: each row's slot, its position, 0 .. rows - 1.

    single: sequences of one row, which read their rings; several: the others, which read rings and new rows; None where there are none.
    Of a bidirectional stack, which reads no rings, `several` is all of them.
    """

    slots: torch.Tensor
    positions: torch.Tensor
    order: torch.Tensor
    single: Sequences | None
    several: Sequences | None
    lengths: np.ndarray  # of `several`
    _ends: np.ndarray  # of `several`: one past each one's last row
    _tails: dict[int, torch.Tensor] = field(default_factory=dict)

    @staticmethod
    def of(batch: Batch, device: torch.device, *, causal: bool) -> Rows:
        """All of a batch by one copy to the device."""
        ends, several = np.cumsum(batch.lengths), batch.lengths > (1 if causal else 0)
        firsts, order = ends - batch.lengths, np.arange(len(batch.ids))
        parts = [np.repeat(batch.slots, batch.lengths), order - np.repeat(firsts - batch.starts, batch.lengths), order]
        for chosen in (~several, several):
            parts += [firsts[chosen], batch.lengths[chosen], batch.slots[chosen], batch.starts[chosen]]
        slots, positions, rows, *split = copied(parts, device)
        single, others = _sequences(*split[:4]), _sequences(*split[4:])
        return Rows(slots, positions, rows, single, others, batch.lengths[several], ends[several])

    def tail(self, capacity: int) -> torch.Tensor:
        """The rows of `several` that a ring of this capacity keeps, the last ones of each sequence."""
        if capacity not in self._tails:
            kept = [np.arange(end - min(length, capacity), end) for end, length in zip(self._ends, self.lengths, strict=True)]
            self._tails[capacity] = torch.from_numpy(np.concatenate(kept)).to(self.order.device)
        return self._tails[capacity]


def staged(numbers: np.ndarray, device: torch.device) -> torch.Tensor:
    """The numbers in memory that a copy to `device` reads without the host waiting for it.

    For a GPU that is pinned memory of PyTorch's pool, which gives it out again only when the copies that read it are done.
    """
    held = torch.from_numpy(numbers)
    return held.pin_memory() if device.type == "cuda" else held


def copied(parts: list[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """Whole numbers on the device by one copy, each part at a multiple of 16 bytes: kernels are compiled apart for any other place."""
    firsts = np.cumsum([0, *(len(part) + len(part) % 2 for part in parts)])
    packed = np.zeros(firsts[-1], np.int64)
    places = [slice(first, first + len(part)) for first, part in zip(firsts[:-1], parts, strict=True)]
    for place, part in zip(places, parts, strict=True):
        packed[place] = part
    there = staged(packed, device).to(device, non_blocking=True)
    return [there[place] for place in places]


def _sequences(first_rows: torch.Tensor, lengths: torch.Tensor, slots: torch.Tensor, starts: torch.Tensor) -> Sequences | None:
    return Sequences(first_rows, lengths, slots, offsets=starts, positions=starts) if len(slots) else None
