"""Rows: one figure each, with all that is needed to judge it; kept as JSON lines, never with host names or paths."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol, TypeVar

from engine.errors import CheckpointError, EngineError, Problem


class Keyed(Protocol):
    """A dataclass of one measurement."""

    @property
    def key(self) -> tuple[object, ...]: ...


Kind = TypeVar("Kind", bound=Keyed)
ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"


@dataclass(frozen=True)
class Row:
    """One engine on one case. Samples are seconds per call; a call is `tokens` tokens of every sequence.

    flops: {"needed", "executed"} of a call.  nominal, nominal_executed: the dense model's FLOPs over this one's.  achieved: median over the
    rounds of dense seconds / this one's.  efficiency: achieved / nominal.  gate: {"difference", "limit", "against"}.  digest,
    reference_digest: of this model's weights and of the model the gate compared it with.
    """

    bench: str
    geometry: str
    part: str
    phase: str
    batch: int
    rows: int
    tokens: int
    variant: str
    kept: int
    heads: list[int]
    backend: str
    dtype: str
    threads: int | None
    gate: dict[str, Any]
    digest: str
    reference_digest: str
    flops: dict[str, int]
    nominal: float
    nominal_executed: float
    achieved: float
    efficiency: float
    percentiles: dict[str, float]
    samples: list[float]
    machine: dict[str, Any]
    versions: dict[str, Any]
    commit: dict[str, Any]

    @property
    def key(self) -> tuple[object, ...]:
        return key_of(asdict(self))

    @property
    def median(self) -> float:
        """Seconds per call."""
        return self.percentiles["50"]


KEY = ["bench", "geometry", "part", "phase", "batch", "rows", "tokens", "variant", "kept", "backend", "dtype", "threads", "machine"]


def key_of(values: Mapping[str, Any]) -> tuple[object, ...]:
    """Two rows of one key are the same measurement, the later one replacing the earlier."""
    return tuple(values[name]["processor"] if name == "machine" else values[name] for name in KEY)


def read_rows(path: Path) -> list[Row]:
    """The rows of a file, none where there is no file; raises CheckpointError for a line that is not a row."""
    return read_kind(path, Row)


def read_kind(path: Path, kind: type[Kind]) -> list[Kind]:
    """read_rows for rows of another dataclass."""
    if not path.exists():
        return []
    rows = []
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            value = json.loads(line)
        except ValueError as error:
            raise CheckpointError(Problem(f"{path.name}, line {number}", "a JSON object", str(error))) from None
        found = set(value) if isinstance(value, dict) else set()
        if found != names:
            differs = ", ".join(sorted(found ^ names))
            raise CheckpointError(Problem(f"{path.name}, line {number}", "the fields of a row, all and no other", f"differs in {differs}"))
        rows.append(kind(**value))
    return rows


def replace_rows(path: Path, tried: Iterable[tuple[object, ...]], rows: Sequence[Kind], kind: type[Kind] = Row) -> None:  # type: ignore[assignment]
    """Write `rows` in place of those with a key in `tried`, whole or not at all: a case whose gate failed keeps no earlier figure."""
    gone = set(tried)
    kept = [row for row in read_kind(path, kind) if row.key not in gone]
    text = "".join(json.dumps(vars(row), allow_nan=False) + "\n" for row in [*kept, *rows])
    temporary = path.with_suffix(".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise EngineError(f"{path}: cannot be written: {error.strerror}", hint="choose another folder with --out") from None
