"""The order of a run, and its two files: gpu.json with every figure and gate, gpu.md with the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import triton

from bench.gpu import attention, card, models, relative
from bench.gpu.figures import Run, begin
from bench.rows import provenance
from engine.errors import EngineError


def measure(*, interpret: bool, tiny: bool, dtype: str, minutes: float) -> Run:
    """Everything, the card first; raises EngineError without a GPU."""
    run = begin(interpret=interpret, tiny=tiny, dtype=dtype, minutes=minutes)
    for section in (card, models, attention, relative):
        section.measure(run)
    for part in run.postponed:
        run.attempt(*part)
    return run


def record(run: Run) -> dict[str, Any]:
    """What gpu.json holds."""
    name = None if run.device.type == "cpu" else torch.cuda.get_device_name(run.device)
    return {
        "device": name,
        "interpreted": run.interpreted,  # then no time in it means anything
        "dtype": run.dtype,
        "triton": triton.__version__,
        **provenance(),
        "figures": run.figures,
        "missing": run.missing,
        "failed": run.failed,
    }


def table(run: Run) -> str:
    """gpu.md: one line a figure."""
    if run.interpreted:
        title = "Tried in Triton's interpreter and on a CPU that plays a GPU: every path ran, and no time here is a figure of a GPU."
    else:
        title = f"{torch.cuda.get_device_name(run.device)}, {run.dtype}, medians of {run.sizes.rounds}"
    lines = [title, "", "| section | case | µs | 10–90 % | rate | share | gate difference |", "|---|---|--:|--:|--:|--:|--:|"]
    for f in run.figures:
        spread = f"{1e6 * f['p10']:.1f}–{1e6 * f['p90']:.1f}" if "p10" in f else ""
        share = f.get("of_peak") if f.get("of_peak") is not None else f.get("of_floor")
        gate = f"{f['gate']['difference']:.1e} of {f['gate']['limit']:.1e}" if f.get("gate") else ""
        cells = (f["section"], f["case"], f"{1e6 * f['seconds']:.1f}", spread, _rate(f), "" if share is None else f"{share:.0%}", gate)
        lines.append(f"| {' | '.join(cells)} |")
    lines += [""] + [f"- missing: {reason}" for reason in run.missing] + [f"- FAILED: {reason}" for reason in run.failed]
    return "\n".join(lines) + "\n"


def _rate(figure: dict[str, Any]) -> str:
    if "flops" in figure:
        return f"{figure['flops'] / 1e12:.1f} TFLOP/s"
    if "bytes_per_second" in figure:
        return f"{figure['bytes_per_second'] / 1e12:.2f} TB/s"
    if "tokens_per_second" in figure:
        return f"{figure['tokens_per_second']:.0f} tokens/s"
    return f"{figure['launches']} launches" if "launches" in figure else ""


def write(run: Run, out: Path) -> None:
    """gpu.json and gpu.md into a folder."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "gpu.json").write_text(json.dumps(record(run), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        (out / "gpu.md").write_text(table(run), encoding="utf-8")
    except OSError as error:
        raise EngineError(f"{out}: cannot be written: {error.strerror}", hint="choose another folder with --out") from None
