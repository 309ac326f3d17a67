"""The GPU benchmark as far as a machine without one can try it: every path in the interpreter, and the refusals."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engine_kernels.backends import no_gpu

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed: pip install 'headcount[gpu]'")


def bench_gpu(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", "gpu", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_every_part_runs_in_the_interpreter(tmp_path: Path) -> None:
    done = bench_gpu("--interpret", "--tiny", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert found["interpreted"] and found["device"] is None and found["failed"] == []
    cuda = importlib.util.find_spec("engine_kernels._cuda_emulated") is not None  # with the kernels of CUDA C++ too
    assert [reason.split(":")[0] for reason in found["missing"]] == ([] if cuda else ["cuda"]) + ["cost of a graph node"]
    sections = [figure["section"] for figure in found["figures"]]
    assert {name: sections.count(name) for name in sections} == {
        "card": 3,
        "decode": 4 + 2 * cuda,
        "token": 4 + 2 * cuda,
        "score": 4 + 2 * cuda,
        "attention": 5 + 2 * cuda,
        "relative": 3,
    }
    gated = [figure for figure in found["figures"] if "gate" in figure]
    assert len(gated) == 8 + 3 * cuda and all(figure["gate"]["difference"] <= figure["gate"]["limit"] for figure in gated)
    table = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert "no time here is a figure of a GPU" in table and table.count("\n|") == 2 + len(sections)


@pytest.mark.skipif(no_gpu() is None and shutil.which("compute-sanitizer") is not None, reason="the tools would run, for long")
def test_sanitize_says_what_it_lacks(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "sanitize", "--out", str(tmp_path / "new")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and ("compute-sanitizer: expected on PATH" in done.stderr or "a GPU" in done.stderr)
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(no_gpu() is None, reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path: Path) -> None:
    done = bench_gpu("--out", str(tmp_path / "new"))
    assert done.returncode == 1 and "GPU" in done.stderr and "--interpret --tiny" in done.stderr
    assert bench_gpu("--interpret", "--out", str(tmp_path / "new")).returncode == 1
    assert not (tmp_path / "new").exists()
