"""compute-sanitizer over the tests of the GPU kernels: odd sizes, poisoned memory, the oracle beside them; on a GPU only."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from engine.errors import EngineError, Problem
from engine_kernels.backends import no_gpu

ROOT = Path(__file__).parents[2]
TESTS = (  # small cases of every kernel; those of CUDA C++ where the module _cuda is built
    "tests/kernels/triton/test_attention.py",
    "tests/kernels/triton/test_int8.py",
    *(f"tests/kernels/cuda/test_{name}.py" for name in ("attention", "decode", "projections", "whole")),
)
TOOLS = ("memcheck", "racecheck")


def sanitize(out: Path, seconds: float) -> list[str]:
    """Run each tool over the tests, its words in out/TOOL.txt; what it found wrong. EngineError without the tool or a GPU."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        raise EngineError(Problem("compute-sanitizer", "on PATH", "none"), hint="it comes with the CUDA toolkit; no other tool is needed")
    if (reason := no_gpu()) is not None:
        raise EngineError(Problem("device", "a GPU", reason))
    out.mkdir(parents=True, exist_ok=True)
    return [line for tool in TOOLS if (line := _run(program, tool, out / f"{tool}.txt", seconds)) is not None]


def _run(program: str, tool: str, log: Path, seconds: float) -> str | None:
    """None where all tests passed under a tool that found nothing."""
    command = [program, "--tool", tool, "--error-exitcode", "9", "--target-processes", "all"]
    command += [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
    # PyTorch's pool of memory would hide what lies beyond a tensor's end.
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    with log.open("w", encoding="utf-8") as words:
        try:
            status = subprocess.run(command, cwd=ROOT, env=environment, stdout=words, stderr=subprocess.STDOUT, timeout=seconds).returncode
        except subprocess.TimeoutExpired:
            return f"{tool}: not done after {seconds:.0f} seconds, see {log.name}"
    return None if status == 0 else f"{tool}: exit status {status}, see {log.name}"
