"""Rows of `python -m bench s1` and `sparsity` → the tables of dense, masked and compact models."""

from __future__ import annotations

from collections.abc import Iterable

from bench.core.rows import Row, commits

WORKS = {"score": "a segment", "decode": "a token"}


def speedups(rows: Iterable[Row]) -> str:
    """One table per backend, dtype and thread count: each pruned model beside the dense one; "" without rows."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.engine, row.dtype, row.threads), []).append(row)
    return "\n".join(_heading(group) + _speedup_table(group) for group in groups.values())


def _heading(rows: list[Row]) -> str:
    row = rows[-1]
    gates = [row.gate for row in rows if row.gate is not None]
    limits = f"{max(gate['difference'] for gate in gates):.1e} of {max(gate['limit'] for gate in gates):.1e} allowed"
    return (
        f"Backend {row.engine}, {row.dtype}, threads: {row.threads}, PyTorch {row.versions.get('torch')}; medians of {len(row.samples)}; "
        f"largest gate difference {limits}; commit {', '.join(commits(rows))}.\n\n"
    )


def _speedup_table(rows: list[Row]) -> str:
    lines = [
        "| time of | batch | heads kept | masked, ms | compact, ms | 10–90 % | nominal | achieved | efficiency | masked achieves |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    by_case: dict[tuple[object, ...], dict[str, Row]] = {}
    for row in rows:
        by_case.setdefault((row.work, row.batch, row.kept), {})[row.model] = row
    for (work, batch, kept), models in by_case.items():
        masked, shown = models.get("masked"), models.get("dense") or models.get("compact")
        name = f"{kept} (dense)" if "dense" in models else str(kept)
        if shown is None:
            figures = ["–"] * 5
        else:
            low, high = (_milliseconds(shown, p) for p in ("10", "90"))
            ratios = [*(f"{shown.figures[name]:.2f}×" for name in ("nominal", "achieved")), f"{shown.figures['efficiency']:.0%}"]
            figures = [_milliseconds(shown, "50"), f"{low}–{high}", *ratios]
        cells = [WORKS[str(work)], str(batch), name, _milliseconds(masked, "50") if masked else "–", *figures]
        lines.append("| " + " | ".join([*cells, f"{masked.figures['achieved']:.2f}×" if masked else "–"]) + " |")
    return "\n".join(lines) + "\n"


def _milliseconds(row: Row, percentile: str) -> str:
    value = row.percentiles[percentile] * 1000
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
