"""A batch on the device: its rows' slots and positions, and its sequences apart by whether they bring one row or several."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from engine.model.runner import Batch
from engine_kernels.gpu_ops import Sequences


@dataclass(frozen=True)
class Rows:
    """slots, positions, order [rows] int64: each row's slot, its position, 0 .. rows - 1.

    single: sequences of one row, which read their rings; several: the others, which read rings and new rows; None where there are none.
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
    def of(batch: Batch, device: torch.device) -> Rows:
        """All of a batch by one copy to the device."""
        ends, several = np.cumsum(batch.lengths), batch.lengths > 1
        firsts, order = ends - batch.lengths, np.arange(len(batch.ids))
        parts = [np.repeat(batch.slots, batch.lengths), order - np.repeat(firsts - batch.starts, batch.lengths), order]
        for chosen in (~several, several):
            parts += [firsts[chosen], batch.lengths[chosen], batch.slots[chosen], batch.starts[chosen]]
        packed = torch.from_numpy(np.concatenate(parts).astype(np.int64)).to(device)
        slots, positions, rows, *split = torch.split(packed, [len(part) for part in parts])
        single, others = _sequences(*split[:4]), _sequences(*split[4:])
        return Rows(slots, positions, rows, single, others, batch.lengths[several], ends[several])

    def tail(self, capacity: int) -> torch.Tensor:
        """The rows of `several` that a ring of this capacity keeps, the last ones of each sequence."""
        if capacity not in self._tails:
            kept = [np.arange(end - min(length, capacity), end) for end, length in zip(self._ends, self.lengths, strict=True)]
            self._tails[capacity] = torch.from_numpy(np.concatenate(kept)).to(self.order.device)
        return self._tails[capacity]


def _sequences(first_rows: torch.Tensor, lengths: torch.Tensor, slots: torch.Tensor, starts: torch.Tensor) -> Sequences | None:
    return Sequences(first_rows, lengths, slots, offsets=starts, positions=starts) if len(slots) else None
