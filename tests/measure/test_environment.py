"""`headcount env`: facts for bug reports and bench rows, from any machine, without an error."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.measure import environment as module
from engine.measure.environment import INSTRUCTION_SETS, environment
from engine_kernels.backends import TABLE
from tests.support.command import headcount

ROOT = Path(__file__).parents[2]


def test_it_names_machine_backends_and_versions() -> None:
    found = environment()
    assert found["python"] == sys.version.split()[0] and found["cores"] >= 1
    assert list(found["backends"]) == [name for name, _ in TABLE] and all(found["backends"].values())
    assert found["packages"]["numpy"] == importlib.metadata.version("numpy")
    assert set(found["instruction_sets"]) <= set(INSTRUCTION_SETS)
    assert json.loads(json.dumps(found)) == found


def test_the_verb_prints_it() -> None:
    assert json.loads(headcount("env", "--json").out) == environment()
    said = headcount("env").out
    for name, reason in environment()["backends"].items():
        assert f"{name:12} {reason}" in said
    assert f"numpy        {importlib.metadata.version('numpy')}" in said


@pytest.mark.parametrize("name", ["bogus", "AVX2", "generic,avx2"])
def test_an_instruction_set_that_cannot_be_forced_is_told(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("HEADCOUNT_CPU_ISA", name)
    done = headcount("env")
    assert (
        done.status == 0 and "cpu          HEADCOUNT_CPU_ISA: expected one of generic, avx2, " in done.out and f"got '{name}'" in done.out
    )
    assert json.loads(headcount("env", "--json").out) == environment()
    failed = headcount("generate", ROOT / "examples" / "shakespeare" / "dense.ckpt", "--prompt", "A")
    assert failed.status == 1 and "HEADCOUNT_CPU_ISA" in failed.err and "Traceback" not in failed.err


def test_the_variables_old_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_CPU_ISA", "generic")
    done = headcount("env")
    assert done.status == 0 and "cpu          ENGINE_CPU_ISA: expected its new name HEADCOUNT_CPU_ISA, got the old one" in done.out
    failed = headcount("generate", ROOT / "examples" / "shakespeare" / "dense.ckpt", "--prompt", "A")
    assert failed.status == 1 and "HEADCOUNT_CPU_ISA" in failed.err and "Traceback" not in failed.err


def test_what_cannot_be_found_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: Any, **__: Any) -> Any:
        raise OSError("no /proc here")

    def absent(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(Path, "read_text", nothing)
    monkeypatch.setattr(module.importlib.metadata, "version", absent)
    monkeypatch.setattr(module.platform, "processor", lambda: "")
    monkeypatch.delattr(module.os, "sched_getaffinity", raising=False)
    found = environment()
    assert found["processor"] is None and found["instruction_sets"] == [] and set(found["packages"].values()) == {None}
    done = headcount("env")
    assert done.status == 0 and "not installed" in done.out and "unknown" in done.out


def test_it_imports_no_torch() -> None:
    code = "import sys; from engine.measure.environment import environment; environment(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
