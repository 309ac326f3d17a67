"""Correctness before speed: what a figure is held to."""

from __future__ import annotations

from dataclasses import asdict, dataclass

LOG_PROB_LIMIT = 2e-4  # in float32, the project's limit between a source and its conversion


@dataclass(frozen=True)
class Gate:
    """difference: the largest of any token's log-probability. NaN on either side never passes."""

    difference: float
    limit: float
    against: str

    @property
    def passed(self) -> bool:
        return bool(self.difference <= self.limit)

    def to_dict(self) -> dict[str, object]:
        return asdict(self)
