"""Rows: one measurement each, with all that is needed to judge it; kept as JSON lines, never with host names or paths."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from engine.checkpoint.new_directory import new_file
from engine.errors import CheckpointError, EngineError, Problem

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"


@dataclass(frozen=True)
class Row:
    """One engine at one piece of work, with what it is to be judged by.

    Samples are seconds of a segment, or of one token of every sequence; none where the engine was skipped, then `skipped` says why.
    work: score (a segment), decode (a token), one or ragged (texts of an encoder), or what a suite measures besides.  part: layers, or
    model with its vocabulary.  model: dense, masked or compact.  gate: {"difference", "limit", "against"}.  digest, reference_digest: of
    this model's weights and of the model the gate compared it with.  instruction_set: of our own kernels.  prepared: seconds of export and
    compilation so far in the run, in no sample.  figures: ratios of the same rounds and counted numbers, by name; each suite says which.
    """

    bench: str
    geometry: str
    work: str
    part: str
    batch: int
    rows: int
    model: str
    kept: int
    heads: list[int]
    engine: str
    dtype: str
    threads: int | None
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
    def key(self) -> Key:
        return key_of(asdict(self))

    @property
    def name(self) -> str:
        return f"{self.engine} {self.dtype}"

    @property
    def processor(self) -> str:
        return processor_of(self.machine)

    @property
    def median(self) -> float:
        """Seconds."""
        return self.percentiles["50"]


Key = tuple[object, ...]
KEY = ["bench", "geometry", "work", "part", "batch", "rows", "model", "kept", "engine", "dtype", "threads"]


def key_of(values: Mapping[str, Any]) -> Key:
    """Two rows of one key are the same measurement, the later one replacing the earlier."""
    return (processor_of(values["machine"]), *(values[name] for name in KEY))


def processor_of(machine: Mapping[str, Any]) -> str:
    """The kind of processor: its name, which several kinds may share, and its vector extensions."""
    return f"{machine['processor']} ({', '.join(machine['instruction_sets']) or 'no vector extensions'})"


def commits(rows: Iterable[Row]) -> list[str]:
    """The commits rows were measured at, each once."""
    return sorted({f"{str(row.commit['id'])[:10]}{' with changes' if row.commit['dirty'] else ''}" for row in rows})


def read_rows(path: Path) -> list[Row]:
    """The rows of a file, none where there is no file; raises CheckpointError for a line that is not a row."""
    if not path.exists():
        return []
    rows = []
    names = {field.name for field in fields(Row)}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            value = json.loads(line)
        except ValueError as error:
            raise CheckpointError(Problem(f"{path.name}, line {number}", "a JSON object", str(error))) from None
        found = set(value) if isinstance(value, dict) else set()
        if found != names:
            differs = ", ".join(sorted(found ^ names))
            raise CheckpointError(Problem(f"{path.name}, line {number}", "the fields of a row, all and no other", f"differs in {differs}"))
        rows.append(Row(**value))
    return rows


def replace_rows(path: Path, tried: Iterable[Key], rows: Sequence[Row]) -> None:
    """Write `rows` in place of those with a key in `tried`, whole or not at all: a case whose gate failed keeps no earlier figure."""
    gone = set(tried)
    kept = [row for row in read_rows(path) if row.key not in gone]
    text = "".join(json.dumps(vars(row), allow_nan=False) + "\n" for row in [*kept, *rows])
    try:
        new_file(path, text.encode())
    except OSError as error:
        raise EngineError(f"{path}: cannot be written: {error.strerror}", hint="choose another folder with --out") from None
