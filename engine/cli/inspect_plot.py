"""The picture of `headcount inspect --plot`: heads kept per layer, and the needed FLOPs of each part against the dense model."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from engine.checkpoint.new_directory import replace_file
from engine.errors import CheckpointError, Problem, Unsupported
from engine.spec.cost import Cost, PartCost, add_parts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# legend entry, its parts, a colour-blind safe colour (Okabe and Ito)
SERIES = (
    ("projections (q, k, v, output)", ("query", "key", "value", "output"), "#0072B2"),
    ("content scores", ("content",), "#56B4E9"),
    ("relative scores", ("relative",), "#009E73"),
    ("value product", ("values",), "#F0E442"),
    ("persistent vectors", ("persistent",), "#E69F00"),
    ("feed-forward", ("feed_forward",), "#CC79A7"),
    ("embedding and vocabulary", ("embedding", "vocabulary"), "#8A8A8A"),
)
KEPT, PRUNED = "#0072B2", "#DDE3E8"


def write_picture(name: str, cost: Cost, dense: Cost, path: Path) -> None:
    """Draw and write a PNG, whole or not at all. Raises Unsupported without matplotlib, CheckpointError where `path` cannot be written."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise Unsupported(Problem("plot", "matplotlib installed", "none"), hint="pip install 'headcount[bench]'") from None
    layers = len(cost.layers)
    figure = Figure(figsize=(max(8.0, min(16.0, 2.0 + 0.5 * layers)), 6.6), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, height_ratios=(1.0, 1.15))
    heads, source_heads = sum(layer.heads for layer in cost.layers), sum(layer.source_heads for layer in cost.layers)
    figure.suptitle(f"{Path(name).name or name}: {heads} of {source_heads} heads kept", fontsize=13, fontweight="bold")
    _draw_heads(top, cost)
    _draw_shares(bottom, cost, dense)
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    _write(picture.getvalue(), path)


def _draw_heads(axes: Axes, cost: Cost) -> None:
    """A bar per layer: kept heads over those of the source."""
    from matplotlib.ticker import MaxNLocator

    places = [layer.index for layer in cost.layers]
    axes.bar(places, [layer.source_heads for layer in cost.layers], width=0.76, color=PRUNED, label="pruned")
    axes.bar(places, [layer.heads for layer in cost.layers], width=0.76, color=KEPT, label="kept")
    most = max(layer.source_heads for layer in cost.layers)
    if len(places) <= 36:
        for layer in cost.layers:
            inside = layer.heads > 0.15 * most
            height = layer.heads - 0.03 * most if inside else layer.heads + 0.02 * most
            color, side = ("white", "top") if inside else ("#333333", "bottom")
            axes.text(layer.index, height, str(layer.heads), ha="center", va=side, fontsize=9, color=color)
    axes.set_xticks(places if len(places) <= 36 else places[::4])
    axes.set_xlim(-0.6, len(places) - 0.4)
    axes.set_ylim(0, most * 1.05)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("layer")
    axes.set_ylabel("heads")
    axes.grid(axis="y", color="#EEEEEE")
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1], labels[::-1], loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, frameon=False, borderaxespad=0.1, fontsize=9
    )


def _draw_shares(axes: Axes, cost: Cost, dense: Cost) -> None:
    """Needed FLOPs by part, each pair of bars in percent of its dense model."""
    bars = [
        (f"prefill {cost.rows}\ndense", [p.prefill.needed for p in _series(dense)], dense.prefill().needed),
        (f"prefill {cost.rows}\npruned", [p.prefill.needed for p in _series(cost)], dense.prefill().needed),
        ("decode\ndense", [p.decode.needed for p in _series(dense)], dense.decode.needed),
        ("decode\npruned", [p.decode.needed for p in _series(cost)], dense.decode.needed),
    ]
    rows = (0.0, 1.0, 2.35, 3.35)
    lefts = [0.0] * len(bars)
    for index, (label, _, color) in enumerate(SERIES):
        widths = [100 * values[index] / max(whole, 1) for _, values, whole in bars]
        if not any(widths):
            continue
        axes.barh(rows, widths, left=lefts, height=0.82, color=color, label=label, edgecolor="white", linewidth=0.6)
        for row, left, width in zip(rows, lefts, widths, strict=True):
            if width >= 5:
                dark = color in ("#0072B2", "#8A8A8A")
                axes.text(left + width / 2, row, f"{width:.0f}", ha="center", va="center", fontsize=9, color="white" if dark else "#222222")
        lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
    for row, left, (_, values, whole) in zip(rows, lefts, bars, strict=True):
        if sum(values) and row in rows[1::2]:
            axes.text(left + 0.8, row, f"{whole / sum(values):.2f}×", ha="left", va="center", fontsize=10)
    axes.set_yticks(rows, [name for name, _, _ in bars])
    axes.invert_yaxis()
    axes.set_xlim(0, 109)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("needed FLOPs, % of the dense model  (× nominal speed-up)")
    axes.grid(axis="x", color="#EEEEEE")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=4, frameon=False, fontsize=9)


def _series(cost: Cost) -> list[PartCost]:
    """The parts of each legend entry, added up."""
    named = {part.name: part for part in cost.parts}
    return [add_parts(label, (named[name] for name in names)) for label, names, _ in SERIES]


def _write(content: bytes, path: Path) -> None:
    try:
        replace_file(path, content)
    except OSError as error:
        raise CheckpointError(Problem(str(path), "a file that can be written", error.strerror or str(error))) from None
