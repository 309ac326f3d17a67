"""Which backend runs a model: one ordered table, asked once at load, every refusal kept with its reason."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass

from engine_kernels.errors import KernelError


@dataclass(frozen=True)
class Refusal:
    """A backend that cannot run here, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Choice:
    """The backend that will run, and those before it in the table that will not."""

    name: str
    refusals: tuple[Refusal, ...]


CPU_DTYPES = ("float32", "bfloat16")


def _probe_cuda(device: str, dtype: str, named: bool) -> str | None:
    return "this version has no CUDA kernels"


GPU_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # of NVIDIA's driver, AMD's, and either under WSL


def no_gpu() -> str | None:
    """Why there is no GPU to use, without importing PyTorch; None where a driver is there."""
    if any(os.path.exists(file) for file in GPU_FILES):
        return None
    return "there is no GPU driver on this machine"


def interpreted() -> bool:
    """Whether Triton runs its interpreter instead of a GPU: TRITON_INTERPRET, read by Triton when it is first imported."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def _probe_triton(device: str, dtype: str, named: bool) -> str | None:
    if not named:
        return "its tests have not run on a GPU yet: it runs when named, backend='triton'"
    if any(importlib.util.find_spec(module) is None for module in ("torch", "triton")):
        return "PyTorch and Triton are not both installed: pip install 'headcount[gpu]'"
    if interpreted():
        if device not in ("auto", "cpu"):
            return f"Triton's interpreter (TRITON_INTERPRET) runs on the CPU, and device={device!r} was asked for"
        return "Triton's interpreter (TRITON_INTERPRET) computes bfloat16 wrongly: use float32 or float16" if dtype == "bfloat16" else None
    if device == "cpu":
        return "runs on GPUs, and device='cpu' was asked for (for tests only, TRITON_INTERPRET=1 interprets the kernels on the CPU)"
    if (reason := no_gpu()) is not None:
        return f"{reason} (for tests only, TRITON_INTERPRET=1 interprets the kernels on the CPU)"
    if not importlib.import_module("torch").cuda.is_available():
        return "PyTorch sees no GPU: this build of it is for another kind, or for none"
    return None


def _probe_cpu(device: str, dtype: str, named: bool) -> str | None:
    if device not in ("auto", "cpu"):
        return f"runs on the CPU only, and device={device!r} was asked for"
    if dtype not in CPU_DTYPES:
        return f"runs {' and '.join(CPU_DTYPES)}, and dtype={dtype!r} was asked for"
    try:
        native = importlib.import_module("engine_kernels.native")
    except ImportError as error:
        return f"the native module does not load: {error}"
    native.instruction_set()  # an ENGINE_CPU_ISA this processor lacks is an error, never a reason to run something else
    return None


def _probe_torch(device: str, dtype: str, named: bool) -> str | None:
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed: pip install 'headcount[torch]'"
    return None


# Best first. A probe is told the device, the dtype and whether the user named this backend; it returns the reason it refuses, or None.
TABLE: tuple[tuple[str, Callable[[str, str, bool], str | None]], ...] = (
    ("cuda", _probe_cuda),
    ("triton", _probe_triton),
    ("cpu", _probe_cpu),
    ("torch", _probe_torch),
)


def resolve(backend: str, device: str, dtype: str = "float32") -> Choice:
    """The first backend of the table that runs `dtype` on `device`, or the one named; raises KernelError with all reasons if none does."""
    names = [name for name, _ in TABLE]
    if backend != "auto" and backend not in names:
        raise KernelError("backend", "auto, " + ", ".join(names), repr(backend))
    refusals: list[Refusal] = []
    for name, probe in TABLE:
        if backend not in ("auto", name):
            continue
        reason = probe(device, dtype, backend == name)
        if reason is None:
            return Choice(name, tuple(refusals))
        refusals.append(Refusal(name, reason))
    raise KernelError("backend", "one that can run here", "; ".join(f"{r.name}: {r.reason}" for r in refusals))
