"""One line for each kind of processor and piece of work: our fastest precision beside the fastest of the other engines."""

from __future__ import annotations

from collections.abc import Iterable

from bench.core.rows import Row
from bench.suites.cpu.report import milliseconds, table

WORKS = {  # (suite, work): what it is called
    ("encoder", "one"): "a text of 128 tokens, BERT-base",
    ("cpu", "score"): "a segment of 192 tokens, All-attention",
    ("cpu", "decode"): "a token, All-attention",
}


def strongest(rows: Iterable[Row]) -> str:
    """The pruned model with the fewest heads, one sequence, one thread, any precision; "" without rows."""
    shown = [
        row for row in rows if (row.batch, row.threads) == (1, 1) and row.samples and row.part != "model" and row.engine != "published"
    ]
    lines = []
    for (suite, work), name in WORKS.items():
        groups: dict[str, list[Row]] = {}
        for row in shown:
            if (row.bench, row.work) == (suite, work):
                groups.setdefault(row.processor, []).append(row)
        for processor, group in groups.items():
            fewest = [row for row in group if row.kept == min(row.kept for row in group)]
            ours = min((row for row in fewest if row.engine == "cpu"), key=lambda row: row.median, default=None)
            other = min((row for row in fewest if row.engine != "cpu"), key=lambda row: row.median, default=None)
            if ours is not None and other is not None:
                ratio = f"{other.median / ours.median:.2f}×"
                lines.append([processor, name, str(ours.kept), _shown(ours), _shown(other), ratio])
    head = ["processor", "work", "heads", "Headcount", "strongest other engine", "ratio"]
    return table([head, ["---", "---", "--:", "---", "---", "--:"], *lines]) if lines else ""


def _shown(row: Row) -> str:
    return f"{milliseconds(row)} ms ({row.name})"
