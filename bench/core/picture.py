"""Latency against kept heads, with the line that FLOPs alone would give."""

from __future__ import annotations

import io
from pathlib import Path

from bench.core.rows import Row
from engine.errors import Unsupported

WORKS = {"score": "a segment", "decode": "a token"}
COLOURS = {"masked": "#b0872f", "compact": "#2f6db0"}


def draw(rows: list[Row], path: Path) -> None:
    """Write a PNG, one panel per work and batch; raises Unsupported without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise Unsupported("the picture needs matplotlib", hint="pip install 'headcount[bench]'") from None
    panels = sorted({(row.work, row.batch) for row in rows}, key=lambda panel: (panel[0] != "score", panel[1]))
    figure = Figure(figsize=(4.2 * len(panels), 3.6), layout="constrained")
    for index, (work, batch) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), index + 1)
        here = [row for row in rows if (row.work, row.batch) == (work, batch)]
        dense = next(row for row in here if row.model == "dense")
        for model, colour in COLOURS.items():
            points = sorted((row for row in here if row.model in ("dense", model)), key=lambda row: row.kept)
            middle = [_milliseconds(row, "50") for row in points]
            spread = [[m - _milliseconds(row, "10") for m, row in zip(middle, points, strict=True)]]
            spread.append([_milliseconds(row, "90") - m for m, row in zip(middle, points, strict=True)])
            axes.errorbar([row.kept for row in points], middle, spread, marker="o", capsize=3, color=colour, label=model)
        nominal = sorted({(row.kept, _milliseconds(dense, "50") / row.figures["nominal"]) for row in here if row.model != "masked"})
        axes.plot(*zip(*nominal, strict=True), "--", color="#777777", label="nominal (FLOPs)")
        axes.set_title(f"{WORKS[work]}, batch {batch}")
        axes.set_xlabel(f"heads kept of {dense.kept}")
        axes.set_ylabel("ms per segment" if work == "score" else "ms per token")
        axes.set_ylim(0, 1.4 * max(_milliseconds(row, "50") for row in here))  # a lone slow sample must not flatten the rest
    figure.axes[0].legend()
    first = rows[0]
    figure.suptitle(f"{first.machine['processor']}, {first.threads} threads, backend {first.engine}, {first.dtype}", fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())


def _milliseconds(row: Row, percentile: str) -> float:
    return row.percentiles[percentile] * 1000
