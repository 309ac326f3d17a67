"""What a run has found so far, and its two files: gpu.json with every figure and gate, gpu.md with the table; without torch."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.suites.gpu.plan import GpuRequest
from engine.errors import EngineError


@dataclass
class Report:
    """figures hold section, case and numbers; missing: what could not be had and why; failed: gates that did not pass; died: parts."""

    asked: GpuRequest
    about: dict[str, Any] = field(default_factory=dict)  # device, versions and commit, by the first part that was able to say
    figures: list[dict[str, Any]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    died: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return Path(self.asked.out)

    def take(self, event: dict[str, Any]) -> None:
        """One thing a part told: `about`, `figure`, `missing` or `failed`; both files are written anew."""
        ((kind, value),) = event.items()
        if kind == "about":
            self.about = value
        else:
            lists: dict[str, list[Any]] = {"figure": self.figures, "missing": self.missing, "failed": self.failed}
            kept = lists[kind]
            if value not in kept:  # parts of one backend lack the same thing
                kept.append(value)
        self.write()

    def miss(self, reason: str) -> None:
        self.take({"missing": reason})

    def write(self) -> None:
        """Whole or not at all, so that whoever reads meanwhile, or after the end of this process, finds a readable file."""
        try:
            _replace(self.folder / "gpu.json", json.dumps(self.record(), indent=1, allow_nan=False) + "\n")
            _replace(self.folder / "gpu.md", self.table())
        except OSError as error:
            raise cannot_be_written(self.folder, error) from None

    def record(self) -> dict[str, Any]:
        """What gpu.json holds."""
        return {
            "device": None,
            **self.about,
            "interpreted": self.asked.interpret,  # then no time in it means anything
            "dtype": self.asked.dtype,
            "figures": self.figures,
            "missing": self.missing,
            "failed": self.failed,
            "died": self.died,
        }

    def table(self) -> str:
        """gpu.md: one line a figure."""
        if self.asked.interpret:
            title = "Tried in Triton's interpreter and the CUDA emulator: every path ran, and no time here is a figure of a GPU."
        else:
            title = f"{self.about.get('device')}, {self.asked.dtype}, medians"
        lines = [title, "", "| section | case | µs | 10–90 % | flushed µs | rate | share | kernels | gate difference |"]
        lines += ["|---|---|--:|--:|--:|--:|--:|---|--:|", *map(_line, self.figures), ""]
        lines += [f"- missing: {reason}" for reason in self.missing] + [f"- FAILED: {reason}" for reason in self.failed]
        return "\n".join(lines) + "\n"


def cannot_be_written(folder: Path, error: OSError) -> EngineError:
    return EngineError(f"{folder}: cannot be written: {error.strerror}", hint="choose another folder with --out")


def _line(figure: dict[str, Any]) -> str:
    spread = f"{1e6 * figure['p10']:.1f}–{1e6 * figure['p90']:.1f}" if "p10" in figure else ""
    share = figure.get("of_peak", figure.get("of_floor"))
    gate = f"{figure['gate']['difference']:.1e} of {figure['gate']['limit']:.1e}" if figure.get("gate") else ""
    seconds = f"{1e6 * figure['seconds']:.1f}" if "seconds" in figure else figure["file"]
    flushed = f"{1e6 * figure['flushed']['seconds']:.1f}" if "flushed" in figure else ""
    kernels = ", ".join(figure.get("kernels", ()))
    cells = (figure["section"], figure["case"], seconds, spread, flushed, _rate(figure), f"{share:.0%}" if share else "", kernels, gate)
    return f"| {' | '.join(cells)} |"


def _rate(figure: dict[str, Any]) -> str:
    if "flops" in figure:
        return f"{figure['flops'] / 1e12:.1f} TFLOP/s"
    if "bytes_per_second" in figure:
        return f"{figure['bytes_per_second'] / 1e12:.2f} TB/s"
    if "tokens_per_second" in figure:
        return f"{figure['tokens_per_second']:.0f} tokens/s"
    return f"{figure['launches']} launches" if "launches" in figure else ""


def _replace(path: Path, text: str) -> None:
    temporary = path.with_suffix(f"{path.suffix}.new")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
