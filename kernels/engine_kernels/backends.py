"""Which backend runs a model: one ordered table, asked once at load, every refusal kept with its reason."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
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
QUANTIZATIONS = {"int8": ("cpu",)}  # what weights may be quantised to → the backends that run it

Probe = Callable[[str, str, Sequence[str]], str | None]


def _probe_cuda(device: str, dtype: str, features: Sequence[str]) -> str | None:
    return "this version has no CUDA kernels"


def _probe_triton(device: str, dtype: str, features: Sequence[str]) -> str | None:
    return "this version has no Triton kernels"


def _probe_cpu(device: str, dtype: str, features: Sequence[str]) -> str | None:
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


def _probe_torch(device: str, dtype: str, features: Sequence[str]) -> str | None:
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed: pip install 'headcount[torch]'"
    return None


def _refuses_quantization(name: str, quantization: str | None) -> str | None:
    if quantization is None or name in QUANTIZATIONS[quantization]:
        return None
    return f"runs no {quantization} weights; backend {' or '.join(QUANTIZATIONS[quantization])} does"


# Best first. A probe returns the reason it refuses, or None.
TABLE: tuple[tuple[str, Probe], ...] = (
    ("cuda", _probe_cuda),
    ("triton", _probe_triton),
    ("cpu", _probe_cpu),
    ("torch", _probe_torch),
)


def preferred_dtype(name: str) -> tuple[str, str]:
    """The dtype `auto` stands for on a backend, and why."""
    if name != "cpu":
        return "float32", "auto: exact"
    native = importlib.import_module("engine_kernels.native")
    dtype, instruction_set = native.preferred_dtype(), native.instruction_set()
    if dtype == "float32":
        return dtype, f"auto: {instruction_set} multiplies bfloat16 no faster"
    return dtype, f"auto: {instruction_set} multiplies it directly; float32 is the exact path"


def resolve(backend: str, device: str, dtype: str = "float32", quantization: str | None = None, features: Sequence[str] = ()) -> Choice:
    """The first backend of the table that runs `dtype` and `quantization` on `device`, or the one named.

    features: what a model needs beside causal attention in a window, by the names the probes know. Raises KernelError for an unknown name,
    and with all reasons if no backend does.
    """
    names = [name for name, _ in TABLE]
    if backend != "auto" and backend not in names:
        raise KernelError("backend", "auto, " + ", ".join(names), repr(backend))
    if quantization is not None and quantization not in QUANTIZATIONS:
        raise KernelError("quantization", "None, " + ", ".join(QUANTIZATIONS), repr(quantization))
    refusals: list[Refusal] = []
    for name, probe in TABLE:
        if backend not in ("auto", name):
            continue
        reason = probe(device, dtype, features) or _refuses_quantization(name, quantization)
        if reason is None:
            return Choice(name, tuple(refusals))
        refusals.append(Refusal(name, reason))
    raise KernelError("backend", "one that can run here", "; ".join(f"{r.name}: {r.reason}" for r in refusals))
