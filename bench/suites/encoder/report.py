"""Rows of `python -m bench encoder` → the table of engines, dense beside pruned, and the table of targets."""

from __future__ import annotations

from collections.abc import Iterable

from bench.core.rows import Row
from bench.suites.cpu.report import Target, heading, milliseconds, table

FILE = "encoder.jsonl"
PRECISIONS = {"float32": 1.2, "bfloat16": 1.5, "int8": 1.5}  # least times the best peer of the same precision must take on one text
OTHERS = ("transformers", "onnxruntime", "openvino", "ctranslate2")
RAGGED = 2.0  # and on a ragged batch, in any precision


def engines(rows: Iterable[Row]) -> str:
    """Milliseconds of every engine on the dense and the pruned model, and their ratio beside that of FLOPs; "" without rows."""
    shown = list(rows)
    measured = [row for row in shown if row.samples]
    reasons: dict[str, list[str]] = {}
    for row in shown:
        if row.skipped:
            names = reasons.setdefault(row.skipped, [])
            names += [row.name] if row.name not in names else []
    skipped = "Skipped: " + "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items()) + ".\n" if reasons else ""
    if not measured:
        return skipped
    lines: dict[tuple[object, ...], dict[bool, Row]] = {}
    for row in sorted(measured, key=lambda row: (row.batch, row.threads)):  # engines stay in their order
        lines.setdefault((_texts(row), row.threads, row.name), {})[row.figures["flops_of_dense"] == 1] = row
    head = ["texts", "threads", "engine", "all heads", "pruned", "pruned / all", "FLOPs"]
    text = [head, ["---", "--:", "---", *["--:"] * 4]]
    text += [[*map(str, key), _cell(found.get(True)), _cell(found.get(False)), *_ratios(found.get(False))] for key, found in lines.items()]
    peers = {name: version for row in measured for name, version in row.versions.items() if name in OTHERS}
    named = ", ".join(f"{name} {peers[name]}" for name in OTHERS if name in peers)
    kept = " and ".join(str(count) for count in sorted({row.kept for row in measured}, reverse=True))
    about = f"{measured[0].geometry}, {kept} heads; {named or 'no other engines'}.\n"
    return about + heading(measured, "ours of the same precision") + table(text) + ("\n" + skipped if skipped else "")


def targets(rows: Iterable[Row]) -> str:
    """What was wanted of each of our precisions beside the best peer of the same one; "" without rows."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row.batch, row.threads, -row.kept)):
        if row.samples:
            groups.setdefault((row.work, row.kept, row.threads, row.dtype), []).append(row)
    lines = []
    for group in groups.values():
        ours = next((row for row in group if row.engine == "cpu"), None)
        others = [row for row in group if row.engine != "cpu"]
        if ours is None or not others:
            continue
        times = {row.name: row.figures[f"times_{ours.name}"] for row in others}
        best = min(times, key=lambda name: times[name])
        least = PRECISIONS[ours.dtype] if ours.batch == 1 else RAGGED
        lines.append(Target(_texts(ours), ours.kept, ours.threads, ours.name, best, least, times[best]).line())
    head = ["texts", "kept", "threads", "ours", "best peer", "target", "achieved", "met"]
    return table([head, ["---", "--:", "--:", "---", "---", "--:", "--:", "---"], *lines]) if lines else ""


def _texts(row: Row) -> str:
    """How many, and of how many tokens."""
    if row.batch == 1:
        return f"1 of {row.rows} tokens"
    return f"{row.batch} of {row.figures['tokens']:.0f} tokens, padded {row.batch * row.rows}"


def _cell(row: Row | None) -> str:
    if row is None:
        return "–"
    times = row.figures.get(f"times_cpu {row.dtype}")
    return f"{milliseconds(row)} ms" + ("" if times is None or row.engine == "cpu" else f" ({times:.2f})")


def _ratios(pruned: Row | None) -> list[str]:
    if pruned is None:
        return ["–", "–"]
    found = [pruned.figures.get(name) for name in ("of_dense", "flops_of_dense")]
    return ["–" if ratio is None else f"{ratio:.2f}" for ratio in found]
