"""What Headcount finds here: machine, instruction sets, backends, versions; for bug reports and bench rows."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from engine_kernels.backends import TABLE, Probe, Wanted
from engine_kernels.errors import KernelError

PACKAGES = ("headcount", "numpy", "ml_dtypes", "safetensors", "tokenizers", "torch", "triton")
INSTRUCTION_SETS = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16", "amx_int8")


def environment() -> dict[str, Any]:
    """Plain JSON values; what cannot be found is None, never an error."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "processor": _cpu_line("model name"),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instruction_sets": _instruction_sets(),
        "backends": {name: _state(probe) for name, probe in TABLE},
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _state(probe: Probe) -> str:
    """Whether a backend can run here, or why not; a HEADCOUNT_CPU_ISA that cannot be, which stops a load, is told as the reason."""
    try:
        return probe(Wanted(named=True)) or "can run"
    except KernelError as error:
        return str(error)


def _cpu_line(key: str) -> str | None:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or None
    return next((line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith(key)), None)


def _instruction_sets() -> list[str]:
    flags = (_cpu_line("flags") or _cpu_line("Features") or "").split()
    return [name for name in INSTRUCTION_SETS if name in flags]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
