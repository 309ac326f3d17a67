"""Rows of `python -m bench cpu` → tables beside their targets, and the picture of growth."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.core.rows import Row, commits

FILE = "cpu.jsonl"
ATTENTION = 0.23  # 700 of the 3,100 GFLOP/s of a processor with matrix registers


@dataclass(frozen=True)
class Target:
    """One line of the table of targets. least: a ratio to reach, or to stay below where `most`."""

    work: str
    kept: int
    threads: int
    engine: str
    against: str
    least: float
    achieved: float
    most: bool = False

    def line(self) -> list[str]:
        met = self.achieved <= self.least if self.most else self.achieved >= self.least
        target = f"{'≤' if self.most else '≥'} {self.least:g}×"
        cells = [self.work, str(self.kept), str(self.threads), self.engine, self.against]
        return [*cells, target, f"{self.achieved:.2f}×", "yes" if met else "no"]


def targets(rows: Iterable[Row]) -> str:
    """What was wanted of the layers beside what the rows say; "" without rows."""
    found = _sorted(row for row in rows if row.part == "layers" and row.samples)
    head = ["work", "kept", "threads", "ours", "against", "target", "achieved", "met"]
    lines = [*_against_peers(found), *_against_machine(found), *_against_itself(found)]
    if not lines:
        return ""
    return table([head, ["---", "--:", "--:", "---", "---", "--:", "--:", "---"], *(line.line() for line in lines)])


def _against_peers(rows: list[Row]) -> Iterator[Target]:
    """A segment and a token of one sequence: the fastest of our precisions against the published algorithm and against the best peer."""
    groups: dict[tuple[str, int, int], list[Row]] = {}
    for row in rows:
        if row.work in ("score", "decode") and row.batch == 1:
            groups.setdefault((row.work, row.kept, row.threads), []).append(row)
    for (work, kept, threads), group in groups.items():
        ours = [row for row in group if row.engine == "cpu"]
        others = [row for row in group if row.engine != "cpu"]
        if not ours or not others:
            continue
        best = min(ours, key=lambda row: row.median)
        times = {row.name: row.figures[f"times_{best.name}"] for row in others if f"times_{best.name}" in row.figures}
        name = min((peer for peer in times if not peer.startswith("published")), key=lambda peer: times[peer], default=None)
        if "published float32" in times:
            yield Target(_work(work, 1), kept, threads, best.name, "the published algorithm", 20, times["published float32"])
        if name is not None:
            yield Target(_work(work, 1), kept, threads, best.name, f"best peer, {name}", 4, times[name])


def _against_machine(rows: list[Row]) -> Iterator[Target]:
    for row in rows:
        if row.work == "attention":
            against = f"registers, {row.figures['peak'] / 1e9:.0f} GFLOP/s"
            yield Target("attention alone", row.kept, row.threads, row.name, against, ATTENTION, row.figures["share"])
        if row.work == "bandwidth":
            against = f"reading {row.figures['bytes'] / 1e6:.0f} MB, {row.figures['peak'] / 1e9:.0f} GB/s"
            yield Target("a token", row.kept, row.threads, row.name, against, 0.8, row.figures["share"])


def _against_itself(rows: list[Row]) -> Iterator[Target]:
    for row in rows:
        if "tokens_gained" in row.figures:
            wanted = 10 if row.batch >= 64 else 5
            yield Target(f"tokens of {row.batch}", row.kept, row.threads, row.name, "tokens of 1", wanted, row.figures["tokens_gained"])
        if row.work == "decode" and row.name == "cpu bfloat16" and "times_cpu int8" in row.figures:
            yield Target(_work("decode", row.batch), row.kept, row.threads, "cpu int8", "cpu bfloat16", 1.8, row.figures["times_cpu int8"])
        share = row.figures.get("share", 1.0)
        if row.work.endswith(" share") and share < 1 and "of_dense" in row.figures:
            work = _work(row.work.split()[0], 1)
            over = row.figures["of_dense"] / share
            yield Target(work, row.kept, row.threads, row.name, f"all heads × {share:.3f}", 1.05, over, most=True)


def peers(rows: Iterable[Row]) -> str:
    """Milliseconds of every engine, how many times ours in float32 they are, a column for each piece of work; "" without rows."""
    shown = _sorted(row for row in rows if row.work in ("score", "decode"))
    measured = [row for row in shown if row.samples]
    columns = sorted({(row.work, row.batch) for row in measured}, key=lambda column: (column[0] != "score", column[1]))
    lines: dict[tuple[object, ...], dict[tuple[str, int], Row]] = {}
    for row in measured:
        lines.setdefault((row.part, row.kept, row.threads, row.name), {})[(row.work, row.batch)] = row
    reasons = dict.fromkeys(f"{row.name}: {row.skipped}" for row in shown if row.skipped)
    skipped = "Skipped: " + "; ".join(reasons) + ".\n" if reasons else ""
    if not lines:
        return skipped
    heads = ["part", "kept", "threads", "engine", *(_work(*column) for column in columns)]
    text = [heads, ["---", "--:", "--:", "---", *["--:"] * len(columns)]]
    text += [[*map(str, key), *(_cell(found.get(column)) for column in columns)] for key, found in lines.items()]
    return heading(measured) + table(text) + ("\n" + skipped if skipped else "")


def heading(rows: Sequence[Row], against: str = "our float32") -> str:
    """Where and how the rows came about; against: what the numbers in brackets are multiples of."""
    row = rows[-1]
    gates = [r.gate for r in rows if r.gate is not None and r.dtype == "float32"]
    compiled = max((r.prepared for r in rows if r.engine == "compile"), default=0)
    rounds = " or ".join(map(str, sorted({len(r.samples) for r in rows})))
    largest = max((gate["difference"] for gate in gates), default=0)
    return (
        f"{row.machine['cores']} cores, our kernels: {row.instruction_set}; PyTorch {row.versions.get('torch')}; "
        f"medians of {rounds}, in brackets how many times {against} "
        f"in the same rounds; largest float32 gate difference {largest:.1e} of 2.0e-04 allowed; "
        f"{f'torch.compile prepared for up to {compiled:.0f} s; ' if compiled else ''}commit {', '.join(commits(rows))}.\n\n"
    )


def draw(rows: Sequence[Row], folder: Path) -> None:
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
                beside.set_ylabel("peak memory above the model, MiB (dashed)", color="#b0872f")
        axes.set_ylim(bottom=0)
        axes.set_xlabel(label)
        axes.set_ylabel("ms per token")
    figure.axes[0].legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu-growth.png").write_bytes(buffer.getvalue())


def _sorted(rows: Iterable[Row]) -> list[Row]:
    """Layers before whole models, few threads before many, all heads before few; engines stay in their order."""
    return sorted(rows, key=lambda row: (row.part, row.threads, -row.kept))


def _work(work: str, batch: int) -> str:
    return "a segment" if work == "score" else f"a token × {batch}" if batch > 1 else "a token"


def _cell(row: Row | None) -> str:
    if row is None:
        return "–"
    times = row.figures.get("times_cpu float32")
    return f"{milliseconds(row)} ms" + ("" if times is None or row.name == "cpu float32" else f" ({times:.2f})")


def milliseconds(row: Row) -> str:
    """Its median, three digits or so."""
    value = row.median * 1000
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(lines: list[list[str]]) -> str:
    """Markdown; the second line says where each column stands."""
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
