"""`bench sanitize` without its program: the tests it names exist, and what a tool says is judged by kernel."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.suites.gpu.sanitize import ROOT, SETTINGS, TESTS, TOOLS, Found, findings_of, judge, passed, sanitize
from engine.errors import EngineError, InputError
from engine_kernels.backends import no_gpu

ERROR = 9  # the exit status of compute-sanitizer where it found something
RACE_IN_DECODE = """\
========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at void headcount::cuda::decode_step<__nv_bfloat16, 64>(Parameters)+0x1a30
=========     and Read access at void headcount::cuda::decode_step<__nv_bfloat16, 64>(Parameters)+0x2b40 [512 hazards]
=========
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""
RACE_IN_HOPPER_ATTEND = """\
========= Warning: Race reported between Read access at headcount::device::swizzled(int)+0x90 in device.h:12
=========     and Write access at fill_vectors(Tile const &)+0x1f0 in fill.h:31 [4 hazards]
"""
RACE_ELSEWHERE = """\
========= Error: Race reported between Write access at void rows_kernel<Config>(Attention, Sequences, NewRows)+0x70 in rows.cu:61
=========     and Read access at void rows_kernel<Config>(Attention, Sequences, NewRows)+0xb0 in rows.cu:77 [8 hazards]
=========
"""
OUT_OF_BOUNDS = """\
========= Invalid __global__ write of size 4 bytes
=========     at void decode_step<half, 64>(Parameters)+0x70
=========     by thread (3,0,0) in block (0,0,0)
=========
========= ERROR SUMMARY: 1 error
"""


def judged(tool: str, log: str, *, status: int = ERROR, tests_passed: int = len(TESTS)) -> Found:
    found = Found()
    judge(tool, status, log, tests_passed, found)
    return found


def test_every_test_it_names_is_there() -> None:
    pytest.importorskip("triton", reason="Triton is not installed: pip install 'headcount[gpu]'", exc_type=ImportError)
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *TESTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(line for line in done.stdout.splitlines() if "::" in line) == sorted(TESTS) and len(TESTS) == 8


def test_races_in_kernels_ordered_by_barriers_in_memory_are_leads() -> None:
    found = judged("racecheck", RACE_IN_DECODE + RACE_IN_HOPPER_ATTEND)
    assert found.failures == [] and [lead.split(":")[0] for lead in found.leads] == ["racecheck, decode_step", "racecheck, hopper_attend"]
    assert "Write access at void headcount::cuda::decode_step" in found.leads[0] and "fill.h:31" in found.leads[1]


def test_other_races_and_whatever_another_tool_finds_are_failures() -> None:
    found = judged("racecheck", RACE_IN_DECODE + RACE_ELSEWHERE)
    assert len(found.leads) == len(found.failures) == 1 and "rows_kernel" in found.failures[0]
    found = judged("memcheck", OUT_OF_BOUNDS)
    assert found.leads == [] and found.failures[0].startswith("memcheck: Invalid __global__ write of size 4 bytes at void decode_step")
    assert judged("synccheck", RACE_IN_DECODE).leads == []


def test_tests_that_fail_or_are_skipped_are_failures_beside_leads() -> None:
    found = judged("racecheck", RACE_IN_DECODE, tests_passed=7)
    assert len(found.leads) == 1 and found.failures == ["racecheck: 7 of 8 tests passed, none may be skipped: see racecheck.txt"]
    assert judged("memcheck", "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n", status=0) == Found()
    assert judged("memcheck", "", status=1).failures == ["memcheck: exit status 1 without a finding: see memcheck.txt"]


def test_findings_are_told_apart() -> None:
    findings = findings_of("pytest says =========\n" + RACE_IN_DECODE + RACE_ELSEWHERE + "........\n")
    assert [len(finding) for finding in findings] == [2, 2]


def test_what_passed_is_counted_by_pytest_itself(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(
        "import pytest\n\ndef test_one(): pass\n\ndef test_two(): assert 0\n\ndef test_three(): pytest.skip('no')\n", encoding="utf-8"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={tmp_path / 'found.xml'}", str(tmp_path)]
    subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=600)
    assert passed(tmp_path / "found.xml") == 1


def test_its_program_is_run_with_its_settings_and_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script in the place of compute-sanitizer, which for one tool tells its variables and for another never ends."""
    program = tmp_path / "compute-sanitizer"
    program.write_text('#!/bin/sh\nenv\n[ "$2" = memcheck ] || exec sleep 3600\nexit 7\n', encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("bench.suites.gpu.sanitize.no_gpu", lambda: None)
    found = sanitize(tmp_path / "out", ["memcheck", "racecheck"], 3.0)
    assert [failure.split(":")[0] for failure in found.failures] == ["memcheck", "racecheck"]
    said = (tmp_path / "out" / "memcheck.txt").read_text(encoding="utf-8").splitlines()
    assert {f"{name}={value}" for name, value in SETTINGS.items()} <= set(said) and "TRITON_INTERPRET=0" in said
    with pytest.raises(InputError, match="memcheck, synccheck, racecheck"):
        sanitize(tmp_path / "out", ["initcheck"])


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed: pip install 'headcount[gpu]'")
@pytest.mark.skipif(no_gpu() is None and shutil.which("compute-sanitizer") is not None, reason="the tools would run, for long")
def test_it_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"compute-sanitizer: expected on PATH|a GPU"):
        sanitize(tmp_path / "new", list(TOOLS))
    assert not (tmp_path / "new").exists()
