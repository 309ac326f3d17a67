"""Which backend runs a model: one ordered table, asked once at load, every refusal kept with its reason."""

from __future__ import annotations

import importlib.util
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


def _probe_cuda(device: str) -> str | None:
    return "this version has no CUDA kernels"


def _probe_triton(device: str) -> str | None:
    return "this version has no Triton kernels"


def _probe_cpu(device: str) -> str | None:
    if device not in ("auto", "cpu"):
        return f"runs on the CPU only, and device={device!r} was asked for"
    return "this version has no CPU kernels yet"


def _probe_torch(device: str) -> str | None:
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed: pip install 'headcount[torch]'"
    return None


# Best first. A probe returns the reason it refuses, or None.
TABLE: tuple[tuple[str, Callable[[str], str | None]], ...] = (
    ("cuda", _probe_cuda),
    ("triton", _probe_triton),
    ("cpu", _probe_cpu),
    ("torch", _probe_torch),
)


def resolve(backend: str, device: str) -> Choice:
    """The first backend of the table that runs on `device`, or the one named; raises KernelError with every reason when none does."""
    names = [name for name, _ in TABLE]
    if backend != "auto" and backend not in names:
        raise KernelError("backend", "auto, " + ", ".join(names), repr(backend))
    refusals: list[Refusal] = []
    for name, probe in TABLE:
        if backend not in ("auto", name):
            continue
        reason = probe(device)
        if reason is None:
            return Choice(name, tuple(refusals))
        refusals.append(Refusal(name, reason))
    raise KernelError("backend", "one that can run here", "; ".join(f"{r.name}: {r.reason}" for r in refusals))
