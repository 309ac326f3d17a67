"""The picture of a run of trials: score against heads removed."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.errors import EngineError
from engine.prune.files import write_file

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8A8A8A")


def draw(summary: Mapping[str, Any], path: Path) -> None:
    """Write a PNG: a line for each order, the dense model across; test scores where there are any, else dev."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise EngineError("matplotlib is needed for a picture and is not installed", hint="pip install 'headcount[prune]'") from None
    part = "test" if "test" in summary["dense"] else "dev"
    figure = Figure(figsize=(7.5, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.axhline(100 * summary["dense"][part]["score"], color="#333333", linewidth=1, linestyle="--", label="dense")
    for order, color in zip(summary["orders"], COLORS * len(summary["orders"]), strict=False):
        counts = [trial["k"] for trial in order["trials"]]
        axes.plot(counts, [100 * trial[part]["score"] for trial in order["trials"]], marker="o", color=color, label=order["order"])
        best = order["best"]
        axes.plot([best["k"]], [100 * best[part]["score"]], marker="o", markersize=12, fillstyle="none", color=color)
    axes.set_xlabel("heads removed before fine-tuning (ring: chosen on dev)")
    axes.set_ylabel(f"{part} score, %")
    axes.grid(color="#EEEEEE")
    axes.legend(frameon=False)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    write_file(path, content.getvalue())
