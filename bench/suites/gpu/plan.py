"""The parts of a run: sections by backends, the more wanted first, each with the most seconds it may take. Without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from engine.errors import InputError, Problem

BACKENDS = ("cuda", "triton", "torch", "compiled")  # ours; plain PyTorch; torch.compile and FlexAttention
OURS = BACKENDS[:2]
INTERPRETED = 5.0  # the interpreter is slow: so many times the seconds of a section


@dataclass(frozen=True)
class Section:
    """module: one with `measure(run)`; backends: a process for each, (None,) where there is no choice; seconds: the most one may take."""

    module: str
    backends: tuple[str | None, ...]
    seconds: float


SECTIONS = {
    "card": Section("bench.suites.gpu.card", (None,), 60),
    "decode": Section("bench.suites.gpu.decode", BACKENDS, 120),
    "attention": Section("bench.suites.gpu.attention", BACKENDS, 150),
    "score": Section("bench.suites.gpu.score", BACKENDS[:3], 90),
    "token": Section("bench.suites.gpu.next_token", BACKENDS[:3], 60),
    "relative": Section("bench.suites.gpu.relative", (None,), 60),
    "barrier": Section("bench.suites.gpu.barrier", (None,), 45),
    "counters": Section("bench.suites.gpu.counters", (None,), 120),
}


@dataclass(frozen=True)
class GpuRequest:
    """What every part of a run shares. batches, rows: instead of the sizes of the geometry; out: the folder, absolute."""

    out: str
    dtype: str = "bfloat16"
    interpret: bool = False
    tiny: bool = False
    batches: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()

    @property
    def device(self) -> str:
        return "cpu" if self.interpret else "cuda"


@dataclass(frozen=True)
class Part:
    """One process: a section by a backend. described: whether device, versions and commit were told already."""

    section: str
    module: str
    backend: str | None
    seconds: float
    asked: GpuRequest
    described: bool = False

    @property
    def name(self) -> str:
        return self.section if self.backend is None else f"{self.section}, {self.backend}"

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Part:
        values: dict[str, Any] = json.loads(text)
        asked = values.pop("asked")
        batches, rows = tuple(asked.pop("batches")), tuple(asked.pop("rows"))
        return Part(**values, asked=GpuRequest(**asked, batches=batches, rows=rows))


def parts_of(asked: GpuRequest, sections: Sequence[str] = (), backends: Sequence[str] = ()) -> list[Part]:
    """All parts, or those of some sections and backends; a section without a choice of backends has its part whatever `backends` says.

    What compiles for long comes last. Raises InputError for names there are not, and where nothing is left.
    """
    known = {"section": (sections, tuple(SECTIONS)), "backend": (backends, BACKENDS)}
    problems = [
        Problem(f"--{option}", ", ".join(names), repr(name))
        for option, (given, names) in known.items()
        for name in given
        if name not in names
    ]
    if problems:
        raise InputError(problems)
    parts = sorted(_parts(asked, sections or tuple(SECTIONS), backends or BACKENDS), key=lambda part: part.backend == "compiled")
    if not parts:
        raise InputError(Problem("--backend", f"one that section {', '.join(sections)} has", ", ".join(backends)))
    return parts


def _parts(asked: GpuRequest, sections: Sequence[str], backends: Sequence[str]) -> Iterator[Part]:
    for name, section in SECTIONS.items():
        for backend in section.backends:
            if name in sections and (backend is None or backend in backends):
                yield Part(name, section.module, backend, section.seconds * (INTERPRETED if asked.interpret else 1), asked)
