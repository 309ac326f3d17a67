"""Runs a table of steps to its end, whatever becomes of each, and writes down after each what is known."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tools.gpu.build import FOLDER, ROOT
from tools.gpu.processes import Process
from tools.gpu.report import Report, Result, outcome
from tools.gpu.steps import Step

MOST_LOG = 300_000  # bytes of one step's words that are kept, from their start and from their end
MOST_FILE = 100_000  # and of each file of text that its own process wrote
LEFT = 5.0  # seconds before the end in which no step starts
PROBE = 5.0
SPARE = 4.0  # seconds before its limit in which the benchmark ends its own processes


@dataclass(frozen=True)
class Way:
    """How a table is run, on a GPU unless `rehearse`.

    seconds: of the whole command; times: what the limits of steps are multiplied by. modules: what steps import of build.py's folders, the
    first of them built for all; trapping: the one whose waits end.
    """

    seconds: float
    times: float = 1.0
    rehearse: bool = False
    modules: tuple[str, ...] = ("cuda", "native")
    trapping: str = "trapping"


class Runner:
    """Steps in the order of a table; `report` holds what became of them."""

    def __init__(self, out: Path, way: Way, report: Report) -> None:
        self._out, self._way, self._report = out, way, report
        self._deadline = time.monotonic() + way.seconds
        self._own = FOLDER / f"run-{os.getpid()}"
        self._background: list[tuple[Step, Process, Path, float]] = []
        self._answers = True  # the GPU, as last asked

    def run(self, table: Sequence[Step]) -> None:
        try:
            for _, group in itertools.groupby(table, key=lambda step: step.together or id(step)):
                steps = list(group)
                self._group(steps)
                red = {step.name for step in steps if not self._report.is_green(step.name)}
                for aside in [aside for aside in self._background if aside[0].instead in red or aside[1].is_over(aside[3])]:
                    self._background.remove(aside)
                    self._finish(*aside)
            while self._background:
                self._finish(*self._background.pop(0))
        finally:
            for _, process, _, _ in self._background:
                process.kill()
            shutil.rmtree(self._own, ignore_errors=True)

    def _group(self, steps: list[Step]) -> None:
        """Steps at the same time; a single one writes its words straight into its file."""
        going = []
        for step in steps:
            if (reason := self._keeps_from(step)) is not None:
                self._report.add(Result(step, "not run", why=reason))
                continue
            times = 1 if step.kind == "planted" else self._way.times
            limit = min(step.limit * times, self._deadline - time.monotonic())
            own = self._own / step.name.replace(" ", "-").replace("/", "-")
            own.mkdir(parents=True, exist_ok=True)
            apart = step.background or len(steps) > 1
            log = own / "words" if apart else self._out / step.file
            with log.open("ab") as words:
                words.write(f"\n=== {step.name}, limit {limit:.0f} s ===\n".encode())
            self._report.begin(step)
            try:
                process = Process(self._command(step, own, limit), self._environment(step), log, ROOT)
            except OSError as error:  # a tool that is not here
                self._report.add(Result(step, "red", why=f"{step.command[0]}: {error.strerror}"))
                continue
            (self._background if step.background else going).append((step, process, own, limit))
        for each in going:
            self._finish(*each)

    def _finish(self, step: Step, process: Process, own: Path, limit: float) -> None:
        end = process.wait(limit, lambda: self._report.collect(step, own))
        self._report.collect(step, own)
        result = outcome(step, end, own, self._words(step, own), demand=not self._way.rehearse)
        if result.status != "green" and not self._probe():
            result = replace(result, why=f"{result.why}; after it the GPU does not answer")
        self._report.add(result)

    def _keeps_from(self, step: Step) -> str | None:
        """Why a step does not start."""
        if self._deadline - time.monotonic() < LEFT:
            return "no time was left"
        if red := [need for need in step.needs if not self._report.is_green(need)]:
            return f"{', '.join(red)} not green"
        if not self._answers and step.kind != "build" and not self._probe():
            return "the GPU does not answer"
        return None

    def _probe(self) -> bool:
        self._answers = self._ask()
        self._report.gpu(self._answers)
        return self._answers

    def _ask(self) -> bool:
        """Whether the GPU answers within five seconds."""
        command = [sys.executable, "-m", "tools.gpu.probe", *(["--rehearse"] if self._way.rehearse else [])]
        end = Process(command, os.environ, self._out / "log.txt", ROOT).wait(PROBE, lambda: None)
        return end.code == 0 and not end.hung

    def _command(self, step: Step, own: Path, limit: float) -> list[str]:
        way, command = self._way, list(step.command)
        names = {"python": sys.executable, "own": own, "folder": FOLDER, "build": way.modules[0], "trapping": way.trapping}
        names["minutes"] = f"{max(limit - SPARE, 6) / 60:.2f}"
        for name, value in names.items():
            command = [part.replace(f"{{{name}}}", str(value)) for part in command]
        return [*command, "--interpret", "--tiny"] if way.rehearse and step.kind == "figures" else command

    def _environment(self, step: Step) -> dict[str, str]:
        folders = [self._way.trapping, *self._way.modules] if step.trapping else self._way.modules
        folders = () if step.kind == "build" else folders  # or what was built before would pass for installed
        path = os.pathsep.join([*(str(FOLDER / name) for name in folders), *filter(None, [os.environ.get("PYTHONPATH")])])
        threads = str(max(1, (os.cpu_count() or 1) // 4))
        return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": threads, **step.environment}

    def _words(self, step: Step, own: Path) -> bytes:
        """What a step said, put into its file where it is not there yet; the file keeps its start and its end where it is too much."""
        file, words = self._out / step.file, own / "words"
        with file.open("ab") as kept:
            if words.exists():
                kept.write(words.read_bytes())
            for text in sorted([*own.glob("*.log"), *own.glob("*.txt")]):
                kept.write(f"\n--- {text.name}\n".encode() + clipped(text.read_bytes(), MOST_FILE))
        whole = file.read_bytes()
        start = whole.rfind(f"\n=== {step.name}, limit ".encode())
        said = whole[start:]
        if len(said) > MOST_LOG:
            file.write_bytes(whole[:start] + clipped(said, MOST_LOG))
        return said


def clipped(words: bytes, most: int) -> bytes:
    """The start and the end of what is too much."""
    if len(words) <= most:
        return words
    return words[: most // 2] + b"\n... %d bytes left out ...\n" % (len(words) - most) + words[-most // 2 :]
