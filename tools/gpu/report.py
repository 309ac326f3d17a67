"""What became of the steps: summary.json, smoke.md and junit.xml after each, gpu.json and gpu.md as figures come."""

from __future__ import annotations

import errno
import json
import os
import re
import time
import xml.etree.ElementTree as xml
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.gpu.processes import End
from tools.gpu.steps import Step

# The reasons of tests for machines without a GPU.
ALLOWED_SKIPS = ("there is a GPU", "a GPU records its own steps", "the module _cuda_emulated is not built")
SUCCESS = ("smoke", "replays")
FILES = ("facts.txt", "build.log", "log.txt", "smoke.md", "junit.xml", "gpu.json", "gpu.md", "summary.json")
TEST = re.compile(rb"^((?:tests|tools)/\S+\.py::\w+(?:\[.*?\](?=\s|$))?)", re.MULTILINE)  # as pytest -v names them
MOUNTED = (errno.EXDEV, errno.EACCES, errno.EROFS)  # where the folder is a file system of its own, or nothing may stand beside it
Case = tuple[str, str]  # a test, and what it says


@dataclass(frozen=True)
class Result:
    """status: green, red (it says that something is wrong), died (by a signal), hung (beyond its limit) or not run."""

    step: Step
    status: str
    seconds: float = 0.0
    why: str = ""
    tests: int = 0
    failures: tuple[Case, ...] = ()
    skipped: tuple[Case, ...] = ()
    suite: xml.Element | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        step = self.step
        named = {"name": step.name, "kind": step.kind, "family": step.family, "status": self.status, "why": self.why}
        counts = {"seconds": round(self.seconds, 1), "limit": step.limit, "tests": self.tests}
        return {**named, **counts, "failures": [list(case) for case in self.failures], "skipped": [list(case) for case in self.skipped]}


def outcome(step: Step, end: End, own: Path, words: bytes, *, demand: bool) -> Result:
    """How a step ended, by its process, what pytest wrote of it and its words. Red if all tests are skipped; with `demand`, if any is."""
    suite, tests, failures, skipped = _read(own / "junit.xml")
    status, why = "green", ""
    if end.hung:
        status, why = "hung", f"stopped after {end.seconds:.0f} s" + (", and SIGKILL did not end it" if end.code is None else "")
    elif end.code is not None and end.code < 0:
        status, why = "died", f"by signal {-end.code}"
    elif end.code != 0:
        status, why = "red", f"{len(failures)} of {tests} tests" if failures else f"it ended with {end.code}"
    elif tests and len(skipped) == tests:
        status, why = "red", f"every test was skipped: {skipped[0][1]}"
    elif lacking := [reason for _, reason in skipped if demand and not reason.endswith(ALLOWED_SKIPS)]:
        status, why = "red", f"{len(lacking)} tests were skipped: {lacking[0]}"
    elif step.kind == "figures" and not (record := _record(own)).get("figures"):
        status, why = "red", _first("; ".join(["no figure", *record.get("missing", ())]))
    if status in ("hung", "died") and suite is None and (running := TEST.findall(words)):
        failures = [(running[-1].decode(), "was running")]
    return Result(step, status, end.seconds, why, tests, tuple(failures), tuple(skipped), suite)


def _read(file: Path) -> tuple[xml.Element | None, int, list[Case], list[Case]]:
    """pytest's report: the element, how many tests, those that failed and those that were skipped."""
    try:
        suite = xml.parse(file).getroot().find("testsuite")
    except (OSError, xml.ParseError):
        return None, 0, [], []
    failures: list[Case] = []
    skipped: list[Case] = []
    cases = [] if suite is None else suite.findall("testcase")
    for case in cases:
        name = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
        failures += [(name, _first(bad.get("message"))) for kind in ("failure", "error") for bad in case.findall(kind)]
        skipped += [(name, _first(left.get("message"))) for left in case.findall("skipped")]
    return suite, len(cases), failures, skipped


def _record(own: Path) -> dict[str, Any]:
    """What the benchmark has written so far."""
    try:
        record: dict[str, Any] = json.loads((own / "gpu.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record


def _first(message: str | None) -> str:
    return (message or "").strip().split("\n", 1)[0][:300]


class Report:
    """All results so far, and the files that show them."""

    def __init__(self, out: Path, command: str, *, rehearse: bool, known: Mapping[str, bool]) -> None:
        """known: families that an earlier command has found green, or not."""
        self._out = out
        self._known = known
        self._about: dict[str, Any] = {"command": command, "rehearsal": rehearse, "gpu": "not asked yet"}
        self._began = time.time()
        self._running: list[str] = []
        self._figures: dict[str, Any] = {}
        self._tables: dict[str, str] = {}
        self.results: list[Result] = []
        self._write()

    def begin(self, step: Step) -> None:
        self._running.append(step.name)
        self._write()

    def gpu(self, answers: bool) -> None:
        after = f" after {self._running[-1]}" if self._running else ""
        self._about["gpu"] = ("answers" if answers else "does not answer") + after

    def add(self, result: Result) -> None:
        if result.step.name in self._running:
            self._running.remove(result.step.name)
        self.results.append(result)
        print(f"{result.seconds:6.1f} s  {result.status:8} {result.step.name}", flush=True)
        self._write()

    def is_green(self, name: str) -> bool:
        """Whether all steps of this name or family that are over are green; where there is none, what was known before."""
        of = [result for result in self.results if name in (result.step.name, result.step.family)]
        return all(result.status == "green" for result in of) if of else self._known.get(name, False)

    @property
    def success(self) -> bool | None:
        """All smoke tests and replays; None where there is none."""
        of = self.of(*SUCCESS)
        return all(result.status == "green" for result in of) if of else None

    def of(self, *kinds: str) -> list[Result]:
        return [result for result in self.results if result.step.kind in kinds]

    def collect(self, step: Step, own: Path) -> None:
        """Figures that a step has written since they were last looked at."""
        found, file = _record(own), own / "gpu.md"
        table = file.read_text(encoding="utf-8") if file.exists() else ""
        if found and (self._figures.get(step.name), self._tables.get(step.name)) != (found, table):
            self._figures[step.name], self._tables[step.name] = found, table
            write(self._out / "gpu.json", json.dumps(self._figures, indent=1) + "\n")
            write(self._out / "gpu.md", "\n".join(f"# {name}\n\n{table}" for name, table in self._tables.items()))

    def to_dict(self) -> dict[str, Any]:
        steps = [result.to_dict() for result in self.results]
        state = {"seconds": round(time.time() - self._began, 1), "running": self._running, "success": self.success}
        return {**self._about, **state, "steps": steps}

    def text(self) -> str:
        """A line for each step that is not green, then the numbers."""
        bad = [result for result in self.results if result.status != "green"]
        lines = [f"{result.status:8} {result.step.name}: {result.why}" for result in bad]
        for result in bad:
            lines += [f"    {test}: {message}" for test, message in result.failures[:5]]
        figures = sum(len(record.get("figures", ())) for record in self._figures.values())
        lines.append(f"{len(self.results) - len(bad)} of {len(self.results)} steps green, {figures} figures, the GPU {self._about['gpu']}")
        if self.success is not None:
            good = "success: every smoke test and every replay"
            lines.append(good if self.success else "no success: a smoke test or a replay is not green")
        return "\n".join(lines) + "\n"

    def _write(self) -> None:
        write(self._out / "summary.json", json.dumps(self.to_dict(), indent=1) + "\n")
        write(self._out / "smoke.md", self._smoke())
        suites = xml.Element("testsuites")
        suites.extend(_suite(result) for result in self.of(*SUCCESS, "tests", "hunt", "planted"))
        write(self._out / "junit.xml", xml.tostring(suites, encoding="unicode"))

    def _smoke(self) -> str:
        lines = ["| step | status | seconds | tests | first failure |", "|---|---|--:|--:|---|"]
        for result in self.of(*SUCCESS):
            words = "; ".join(filter(None, [result.why, *(f"{test}: {message}" for test, message in result.failures[:1])]))
            lines.append(f"| {result.step.name} | {result.status} | {result.seconds:.1f} | {result.tests} | {words.replace('|', '/')} |")
        return "\n".join(lines) + "\n"


def _suite(result: Result) -> xml.Element:
    """pytest's own suite under the step's name; where it wrote none, one that says how the step ended."""
    suite = result.suite
    if suite is None:
        suite = xml.Element("testsuite", tests="1", errors="0" if result.status == "green" else "1")
        case = xml.SubElement(suite, "testcase", classname="tools.gpu", name=result.step.name, time=f"{result.seconds:.1f}")
        if result.status != "green":
            xml.SubElement(case, "error", message=f"{result.status}: {result.why}")
    suite.set("name", result.step.name)
    return suite


def write(file: Path, text: str) -> None:
    """A whole file or the one before it, never a part; what is not yet whole stands beside the folder, where that can be."""
    unfinished = file.parent.with_name(f"{file.parent.name}.unfinished")
    try:
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, file)
    except OSError as error:
        if error.errno not in MOUNTED:
            raise
        file.write_text(text, encoding="utf-8")
        with suppress(OSError):
            unfinished.unlink()
