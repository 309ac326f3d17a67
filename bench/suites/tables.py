"""The tables that documents hold between markers, each made from the rows of a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from bench.core.document import Table
from bench.core.rows import Row, read_rows
from bench.suites.cpu import report as cpu
from bench.suites.encoder import report as encoder
from bench.suites.speedups import speedups
from bench.suites.strongest import strongest

Rendered = Callable[[Iterable[Row]], str]


def _part(part: str, rows: Iterable[Row]) -> str:
    return speedups(row for row in rows if row.part == part)


# name: file, heading, table of the rows of one kind of processor
BLOCKS: dict[str, tuple[str, str, Rendered]] = {
    "s1-layers": ("s1.jsonl", "Dense, masked and compact: the layers of arXiv 2110.03252", partial(_part, "layers")),
    "s1-model": ("s1.jsonl", "Dense, masked and compact, with the vocabulary", partial(_part, "model")),
    "sparsity-layers": ("sparsity.jsonl", "The same share of heads removed from every layer", partial(_part, "layers")),
    "sparsity-model": ("sparsity.jsonl", "The same share of heads removed, with the vocabulary", partial(_part, "model")),
    "cpu-peers": (cpu.FILE, "The layers of arXiv 2110.03252 beside other engines", cpu.peers),
    "cpu-targets": (cpu.FILE, "The same beside what was wanted", cpu.targets),
    "encoder-engines": (encoder.FILE, "Encoders of BERT-base's shape beside other engines", encoder.engines),
    "encoder-targets": (encoder.FILE, "The same beside what was wanted", encoder.targets),
}


def _by_processor(file: str, table: Rendered, results: Path) -> dict[str, str]:
    """Kind of processor → its table; none for those without rows."""
    groups: dict[str, list[Row]] = {}
    for row in read_rows(results / file):
        groups.setdefault(row.processor, []).append(row)
    return {processor: text for processor, rows in groups.items() if (text := table(rows))}


def _one(name: str, results: Path) -> str:
    file, _, table = BLOCKS[name]
    return "\n".join(f"{processor}:\n\n{text}" for processor, text in _by_processor(file, table, results).items())


def processors(results: Path) -> str:
    """A section for every kind of processor, with all the tables it has rows for."""
    sections: dict[str, list[str]] = {}
    for file, heading, table in BLOCKS.values():
        for processor, text in _by_processor(file, table, results).items():
            sections.setdefault(processor, []).append(f"### {heading}\n\n{text}")
    return "\n".join(f"## {processor}\n\n" + "\n".join(parts) for processor, parts in sections.items())


def _all(results: Path) -> Iterator[Row]:
    for file in (cpu.FILE, encoder.FILE):
        yield from read_rows(results / file)


TABLES: dict[str, Table] = {name: partial(_one, name) for name in BLOCKS} | {
    "processors": processors,
    "strongest": lambda results: strongest(_all(results)),
}
