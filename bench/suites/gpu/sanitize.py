"""compute-sanitizer over eight tests that run every GPU kernel, odd sizes and the oracle beside them; on a GPU only."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from bench.suites.gpu.supervise import environment, process
from engine.errors import EngineError, InputError, Problem
from engine_kernels.backends import no_gpu

ROOT = Path(__file__).parents[3]
CUDA, TRITON = "tests/kernels/cuda", "tests/kernels/triton"
TESTS = (  # small cases that between them start every kernel
    f"{CUDA}/test_runner.py::test_keeps_to_the_oracle[1]",  # attend_constants, attend_rows, attend_ring, projections, write_rings
    f"{CUDA}/test_runner.py::test_published_checkpoints_keep_to_the_oracle[aiha-adaptive/checkpoint.ckpt-float16]",  # score_words
    f"{CUDA}/test_bidirectional.py::test_the_encoder_fixture[dense]",  # attend_bidirectional, normalise, activations
    f"{CUDA}/test_hopper.py::test_heads_of_64_take_it_however_few_tiles[heads of 64]",  # hopper_attend
    f"{CUDA}/test_decode.py::test_tokens_in_a_row_keep_to_the_oracle[0]",  # decode_step
    f"{TRITON}/test_runner.py::test_keeps_to_the_oracle[11]",  # all of a model with streams
    f"{TRITON}/test_bidirectional.py::test_ragged_sequences_keep_to_the_oracle[3-float16]",  # attend_bidirectional
    f"{TRITON}/test_int8.py::test_models_keep_to_the_oracle[11]",  # the same kernels on int8
)
TOOLS = {"memcheck": 240.0, "synccheck": 180.0, "racecheck": 420.0}  # the most seconds of each
SETTINGS = {
    "HEADCOUNT_GPU_GRAPHS": "0",  # PyTorch without its pool of memory refuses to record
    "HEADCOUNT_CUDA_PLAIN": "1",  # no two kernels at a time, and a fault is said to be of its kernel
    "HEADCOUNT_CUDA_PATIENCE": "120",  # seconds: watched kernels are slow
    "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",  # PyTorch's pool would hide what lies beyond a tensor's end
}
# Kernels whose bulk copies and remote shared memory are ordered by barriers in memory, which racecheck may not know: what names them.
UNORDERED = {
    "decode_step": r"\bdecode_step\b|\bdecode/\w+\.(?:cu|h)\b|\b(?:block|decode)\.(?:cu|h)\b",
    "hopper_attend": r"\bhopper_kernel\b|\bhopper/\w+\.(?:cu|h)\b|\b(?:fill|hopper|matrices|tensors|tile)\.h\b",
}
FINDING = re.compile(r"^=========\s(?!COMPUTE-SANITIZER|[A-Z]+ SUMMARY)(\S.*)$")
REST = re.compile(r"^=========\s{2,}(\S.*)$")


@dataclass
class Found:
    """failures: what is wrong; leads: races in kernels whose order racecheck does not know, to look at and no more."""

    failures: list[str] = field(default_factory=list)
    leads: list[str] = field(default_factory=list)


def sanitize(out: Path, tools: Sequence[str], seconds: float | None = None) -> Found:
    """Run each tool over TESTS, its words in out/TOOL.txt; seconds: instead of its own limit. EngineError without the program or a GPU."""
    if unknown := [tool for tool in tools if tool not in TOOLS]:
        raise InputError([Problem("--tool", ", ".join(TOOLS), repr(tool)) for tool in unknown])
    program = shutil.which("compute-sanitizer")
    if program is None:
        raise EngineError(Problem("compute-sanitizer", "on PATH", "none"), hint="it comes with the CUDA toolkit; no other tool is needed")
    if (reason := no_gpu()) is not None:
        raise EngineError(Problem("device", "a GPU", reason))
    out.mkdir(parents=True, exist_ok=True)
    found = Found()
    for tool in tools:
        _run(program, tool, out.resolve(), seconds or TOOLS[tool], found)
    return found


def _run(program: str, tool: str, out: Path, seconds: float, found: Found) -> None:
    log, results = out / f"{tool}.txt", out / f"{tool}.xml"
    results.unlink(missing_ok=True)
    command = [program, "--tool", tool, "--error-exitcode", "9", "--target-processes", "all"]
    command += [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}", f"--junitxml={results}"]
    command += [f"{ROOT}/{test}" for test in TESTS]
    with log.open("w", encoding="utf-8") as words:
        with process(command, {**environment(interpret=False), **SETTINGS}, words) as child, suppress(subprocess.TimeoutExpired):
            child.wait(seconds)
        status = child.returncode if results.exists() else None
    if status is None:
        found.failures.append(f"{tool}: not done after {seconds:.0f} seconds, or ended without results, see {log.name}")
        return
    judge(tool, status, log.read_text(encoding="utf-8", errors="replace"), passed(results), found)


def judge(tool: str, status: int, log: str, tests_passed: int, found: Found) -> None:
    """What a tool found and how its tests ended → failures and leads. A race in one of UNORDERED is a lead, all else a failure."""
    findings = findings_of(log)
    kernels = [unordered(finding) if tool == "racecheck" else None for finding in findings]
    for kernel, finding in zip(kernels, findings, strict=True):
        if kernel is None:
            found.failures.append(f"{tool}: {' '.join(finding)[:300]}")
        else:
            found.leads.append(f"{tool}, {kernel}: {' '.join(finding)[:300]}")
    if tests_passed != len(TESTS):
        found.failures.append(f"{tool}: {tests_passed} of {len(TESTS)} tests passed, none may be skipped: see {tool}.txt")
    elif status and not findings:
        found.failures.append(f"{tool}: exit status {status} without a finding: see {tool}.txt")


def findings_of(log: str) -> list[list[str]]:
    """The lines of each finding in a tool's words: one that stands at the margin, and the indented ones below it."""
    findings: list[list[str]] = []
    for line in log.splitlines():
        if match := FINDING.match(line):
            findings.append([match[1]])
        elif (match := REST.match(line)) and findings:
            findings[-1].append(match[1])
    return findings


def unordered(finding: Sequence[str]) -> str | None:
    """The kernel of UNORDERED a race is in: shared memory is a kernel's own, so one access that names it is enough."""
    return next((kernel for kernel, names in UNORDERED.items() if any(re.search(names, line) for line in finding)), None)


def passed(results: Path) -> int:
    """How many tests passed, by pytest's own file."""
    suite = ElementTree.parse(results).getroot().find("testsuite")
    assert suite is not None
    counts = {name: int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")}
    return counts.pop("tests") - sum(counts.values())
