"""Rows of `python -m bench cpu` → tables beside their targets, and the picture of growth."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.cpu_rows import CpuRow
from bench.rows import read_kind

FILE = "cpu.jsonl"


def peers(rows: Iterable[CpuRow]) -> str:
    """Milliseconds of every engine, a column for each piece of work; "" without rows."""
    shown = [row for row in rows if row.work in ("score", "decode")]
    columns = list(dict.fromkeys((row.work, row.batch) for row in shown))
    lines: dict[tuple[object, ...], dict[tuple[str, int], CpuRow]] = {}
    for row in shown:
        lines.setdefault((row.part, row.kept, row.threads, row.name), {})[(row.work, row.batch)] = row
    if not lines:
        return ""
    heads = ["part", "kept", "threads", "engine", *(_work(*column) for column in columns)]
    text = [heads, ["---", "--:", "--:", "---", *["--:"] * len(columns)]]
    text += [[*map(str, key), *(_cell(found.get(column)) for column in columns)] for key, found in lines.items()]
    return _table(text)


def limits(rows: Iterable[CpuRow]) -> str:
    """What bounds our own kernels; "" without rows."""
    text = [
        ["work", "kept", "threads", "engine", "measured", "limit or target", "share"],
        ["---", "--:", "--:", "---", "--:", "--:", "--:"],
    ]
    for row in rows:
        about, f = [row.work, str(row.kept), str(row.threads), row.name], row.figures
        if row.skipped and row.work in ("attention", "bandwidth"):
            text.append([*about, f"skipped: {row.skipped}", "", ""])
        elif row.work == "attention":
            text.append([*about, f"{f['flops'] / row.median / 1e9:.1f} GFLOP/s", f"{f['peak'] / 1e9:.1f} GFLOP/s", f"{f['share']:.0%}"])
        elif row.work == "bandwidth":
            text.append([*about, f"{f['bytes'] / row.median / 1e9:.1f} GB/s", f"{f['peak'] / 1e9:.1f} GB/s", f"{f['share']:.0%}"])
        elif row.work.endswith(" share") and "of_dense" in f and f["share"] < 1:
            text.append(
                [*about, f"{f['of_dense']:.3f} of dense", f"≤ {1.05 * f['share']:.3f}", f"{f['of_dense'] / f['share']:.0%} of k/128"]
            )
    return _table(text) if len(text) > 2 else ""


def draw(rows: Sequence[CpuRow], folder: Path) -> None:
    """Write cpu-growth.png where there are rows of growth and matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    axes_of = {"growth rows": ("rows", "rows of one step"), "growth batch": ("batch", "sequences"), "growth heads": ("kept", "heads kept")}
    shown = {work: sorted((r for r in rows if r.work == work and r.samples), key=lambda r: (r.rows, r.batch, r.kept)) for work in axes_of}
    if not all(shown.values()):
        return
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for index, (work, (name, label)) in enumerate(axes_of.items()):
        axes = figure.add_subplot(1, len(axes_of), index + 1)
        for threads in sorted({row.threads for row in shown[work]}):
            points = [row for row in shown[work] if row.threads == threads]
            at = [getattr(row, name) for row in points]
            axes.plot(at, [row.figures["per_token"] * 1e3 for row in points], "o-", label=f"ms per token, threads: {threads}")
            if threads == points[0].threads and all("memory" in row.figures for row in points):
                beside = axes.twinx()
                beside.plot(at, [row.figures["memory"] / 2**20 for row in points], "s--", color="#b0872f", label="peak memory, MiB")
                beside.set_ylim(bottom=0)
                beside.set_ylabel("MiB")
        axes.set_ylim(bottom=0)
        axes.set_xlabel(label)
        axes.set_ylabel("ms per token")
    figure.axes[0].legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu-growth.png").write_bytes(buffer.getvalue())


def peers_table(results: Path) -> str:
    return peers(read_kind(results / FILE, CpuRow))


def limits_table(results: Path) -> str:
    return limits(read_kind(results / FILE, CpuRow))


def _work(work: str, batch: int) -> str:
    return "a segment" if work == "score" else f"a token × {batch}" if batch > 1 else "a token"


def _cell(row: CpuRow | None) -> str:
    if row is None:
        return "–"
    return f"skipped: {row.skipped}" if row.skipped else f"{_milliseconds(row)} ms"


def _milliseconds(row: CpuRow) -> str:
    value = row.median * 1000
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _table(lines: list[list[str]]) -> str:
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
