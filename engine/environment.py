"""What Headcount finds here: machine, instruction sets, backends, versions; for bug reports and bench rows."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from engine_kernels.backends import TABLE

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
        "backends": {name: probe("auto", "float32", True) or "can run" for name, probe in TABLE},
        "packages": {name: _version(name) for name in PACKAGES},
    }


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
