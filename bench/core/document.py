"""Rows → Markdown tables, kept between `<!-- bench:NAME -->` and `<!-- /bench:NAME -->` of a document and never written by hand."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from engine.errors import CheckpointError, EngineError, Problem

Table = Callable[[Path], str]  # of a folder of rows; "" without rows


def update(text: str, tables: Mapping[str, Table], results: Path, *, source: str) -> str:
    """`text` with every table between markers made anew; raises EngineError for unknown or unpaired markers and for tables without rows."""
    opened, closed = re.findall(r"<!-- bench:(\S+) -->", text), re.findall(r"<!-- /bench:(\S+) -->", text)
    problems: list[Problem | str] = []
    if opened != closed:
        problems.append(Problem("markers", f"each of {opened} closed in order", f"{closed}"))
    problems.extend(Problem(f"bench:{name}", "one of " + ", ".join(tables), "no such table") for name in opened if name not in tables)
    made = {name: tables[name](results) for name in opened if name in tables}
    problems.extend(Problem(f"bench:{name}", "rows to make it from", "none") for name, table in made.items() if not table)
    if problems:
        raise EngineError(problems, source=source, hint="make rows with `python -m bench s1` or `cpu`")
    for name, table in made.items():
        pair = re.compile(rf"(<!-- bench:{name} -->\n).*?(<!-- /bench:{name} -->)", re.DOTALL)
        text = pair.sub(lambda found, table=table: f"{found[1]}{table}{found[2]}", text)  # type: ignore[misc]
    return text


def check(document: Path, tables: Mapping[str, Table], results: Path) -> int:
    """How many tables stand as their rows make them; raises EngineError with the difference when one does not."""
    before = _read(document)
    after = update(before, tables, results, source=document.name)
    if before != after:
        lines = difflib.unified_diff(before.splitlines(), after.splitlines(), document.name, "rows", lineterm="", n=0)
        raise EngineError(["tables differ from their rows:", *lines], hint="run `python -m bench report --write`")
    return len(re.findall(r"<!-- bench:\S+ -->", before))


def write(document: Path, tables: Mapping[str, Table], results: Path) -> bool:
    """Bring the tables up to date; whether anything changed."""
    before = _read(document)
    after = update(before, tables, results, source=document.name)
    if before != after:
        document.write_text(after, encoding="utf-8")
    return before != after


def _read(document: Path) -> str:
    try:
        return document.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(Problem(document.name, "a readable text", type(error).__name__)) from None
