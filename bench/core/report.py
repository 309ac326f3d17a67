"""Rows → Markdown tables, kept between `<!-- bench:NAME -->` and `<!-- /bench:NAME -->` of a document and never written by hand."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from bench.core.rows import Row, read_kind, read_rows
from bench.suites.cpu import report as cpu_report
from bench.suites.cpu.rows import FILE as CPU_FILE
from bench.suites.cpu.rows import CpuRow
from bench.suites.encoder import report as encoder_report
from engine.errors import CheckpointError, EngineError, Problem

PHASES = {"prefill": "a segment", "decode": "a token"}


def update(text: str, results: Path, *, source: str) -> str:
    """`text` with every table between markers made anew; raises EngineError for unknown or unpaired markers and for tables without rows."""
    opened, closed = re.findall(r"<!-- bench:(\S+) -->", text), re.findall(r"<!-- /bench:(\S+) -->", text)
    problems: list[Problem | str] = []
    if opened != closed:
        problems.append(Problem("markers", f"each of {opened} closed in order", f"{closed}"))
    problems.extend(Problem(f"bench:{name}", "one of " + ", ".join(TABLES), "no such table") for name in opened if name not in TABLES)
    tables = {name: TABLES[name](results) for name in opened if name in TABLES}
    problems.extend(Problem(f"bench:{name}", "rows to make it from", "none") for name, table in tables.items() if not table)
    if problems:
        raise EngineError(problems, source=source, hint="make rows with `python -m bench s1` or `cpu`")
    for name, table in tables.items():
        pair = re.compile(rf"(<!-- bench:{name} -->\n).*?(<!-- /bench:{name} -->)", re.DOTALL)
        text = pair.sub(lambda found, table=table: f"{found[1]}{table}{found[2]}", text)  # type: ignore[misc]
    return text


def check(document: Path, results: Path) -> int:
    """How many tables stand as their rows make them; raises EngineError with the difference when one does not."""
    before = _read(document)
    after = update(before, results, source=document.name)
    if before != after:
        lines = difflib.unified_diff(before.splitlines(), after.splitlines(), document.name, "rows", lineterm="", n=0)
        raise EngineError(["tables differ from their rows:", *lines], hint="run `python -m bench report --write`")
    return len(re.findall(r"<!-- bench:\S+ -->", before))


def write(document: Path, results: Path) -> bool:
    """Bring the tables up to date; whether anything changed."""
    before = _read(document)
    after = update(before, results, source=document.name)
    if before != after:
        document.write_text(after, encoding="utf-8")
    return before != after


def speedups(rows: Iterable[Row]) -> str:
    """One table per machine, backend, dtype and thread count: each pruned model beside the dense one; "" without rows."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.machine["processor"], row.backend, row.dtype, row.threads), []).append(row)
    return "\n".join(_heading(group) + _speedup_table(group) for group in groups.values())


def _heading(rows: list[Row]) -> str:
    row = rows[-1]
    commits = sorted({f"{str(r.commit['id'])[:10]}{' with changes' if r.commit['dirty'] else ''}" for r in rows})
    instructions = ", ".join(row.machine["instruction_sets"]) or "no vector extensions"
    gates = f"largest gate difference {max(r.gate['difference'] for r in rows):.1e} of {max(r.gate['limit'] for r in rows):.1e} allowed"
    return (
        f"{row.machine['processor']}, {row.machine['cores']} cores ({instructions}); backend {row.backend}, {row.dtype}, "
        f"threads: {row.threads}, PyTorch {row.versions.get('torch')}; medians of {len(row.samples)}; {gates}; "
        f"commit {', '.join(commits)}.\n\n"
    )


def _speedup_table(rows: list[Row]) -> str:
    lines = [
        "| time of | batch | heads kept | masked, ms | compact, ms | 10–90 % | nominal | achieved | efficiency | masked achieves |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    by_case: dict[tuple[object, ...], dict[str, Row]] = {}
    for row in rows:
        by_case.setdefault((row.phase, row.batch, row.kept), {})[row.variant] = row
    for (phase, batch, kept), variants in by_case.items():
        masked, shown = variants.get("masked"), variants.get("dense") or variants.get("compact")
        name = f"{kept} (dense)" if "dense" in variants else str(kept)
        if shown is None:
            figures = ["–"] * 5
        else:
            low, high = (_milliseconds(shown, p) for p in ("10", "90"))
            ratios = [f"{shown.nominal:.2f}×", f"{shown.achieved:.2f}×", f"{shown.efficiency:.0%}"]
            figures = [_milliseconds(shown, "50"), f"{low}–{high}", *ratios]
        cells = [PHASES[str(phase)], str(batch), name, _milliseconds(masked, "50") if masked else "–", *figures]
        lines.append("| " + " | ".join([*cells, f"{masked.achieved:.2f}×" if masked else "–"]) + " |")
    return "\n".join(lines) + "\n"


def _milliseconds(row: Row, percentile: str) -> str:
    """Of a segment, or of one decoded token of every sequence."""
    calls = 1 if row.phase == "prefill" else row.tokens
    value = row.percentiles[percentile] / calls * 1000
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _part(file: str, part: str, results: Path) -> str:
    return speedups(row for row in read_rows(results / file) if row.part == part)


def _cpu(table: Callable[[Iterable[CpuRow]], str], results: Path, file: str = CPU_FILE) -> str:
    return table(read_kind(results / file, CpuRow))


TABLES: dict[str, Callable[[Path], str]] = {
    "s1-layers": partial(_part, "s1.jsonl", "layers"),
    "s1-model": partial(_part, "s1.jsonl", "model"),
    "sparsity-layers": partial(_part, "sparsity.jsonl", "layers"),
    "sparsity-model": partial(_part, "sparsity.jsonl", "model"),
    "cpu-targets": partial(_cpu, cpu_report.targets),
    "cpu-peers": partial(_cpu, cpu_report.peers),
    "encoder-targets": partial(_cpu, encoder_report.targets, file=encoder_report.FILE),
    "encoder-engines": partial(_cpu, encoder_report.engines, file=encoder_report.FILE),
}


def _read(document: Path) -> str:
    try:
        return document.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(Problem(document.name, "a readable text", type(error).__name__)) from None
