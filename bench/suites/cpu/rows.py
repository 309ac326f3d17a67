"""Rows of `python -m bench cpu`: one engine at one piece of work, with what it was held against in the same rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

FILE = "cpu.jsonl"
KEY = ["geometry", "work", "part", "batch", "rows", "kept", "engine", "dtype", "threads"]


@dataclass(frozen=True)
class CpuRow:
    """Samples are seconds of a segment, or of one token of every sequence; none where the engine was skipped, then `skipped` says why.

    work: score, decode, score share, decode share, attention, bandwidth, growth rows, growth batch or growth heads.  part: layers, or model
    with its vocabulary.  gate: {"difference", "limit", "against"}.  instruction_set: of our own kernels.  prepared: seconds of export and
    compilation so far in the run, in no sample.
    figures: ratios of the same rounds and counted numbers, by name; bench/cpu*.py says which work has which.
    """

    bench: str
    geometry: str
    work: str
    part: str
    batch: int
    rows: int
    kept: int
    heads: list[int]
    engine: str
    dtype: str
    threads: int
    skipped: str | None
    gate: dict[str, Any] | None
    digest: str
    reference_digest: str
    instruction_set: str
    prepared: float
    figures: dict[str, float]
    percentiles: dict[str, float]
    samples: list[float]
    machine: dict[str, Any]
    versions: dict[str, Any]
    commit: dict[str, Any]

    @property
    def key(self) -> tuple[object, ...]:
        return key_of(asdict(self))

    @property
    def name(self) -> str:
        return f"{self.engine} {self.dtype}"

    @property
    def median(self) -> float:
        """Seconds."""
        return self.percentiles["50"]


def key_of(values: Mapping[str, Any]) -> tuple[object, ...]:
    """Two rows of one key are the same measurement, the later one replacing the earlier."""
    return (values["machine"]["processor"], *(values[name] for name in KEY))
