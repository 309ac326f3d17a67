"""The words a user says about a backend (its name, device, dtype, threads, quantisation), checked against their tables."""

from __future__ import annotations

from importlib import import_module

from engine.backends.plan import Stack
from engine.backends.runner import Folded, Limits, Runner
from engine.errors import BackendUnavailable, InputError, Problem
from engine_kernels import backends
from engine_kernels.errors import KernelError

DTYPES = {name: name for name in backends.DTYPES} | {"auto": "float32", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
RUNNERS = {  # backend → the module whose `build` makes its Runner
    "cuda": "engine.backends.gpu.cuda",
    "triton": "engine.backends.gpu.triton",
    "cpu": "engine.backends.cpu",
    "torch": "engine.backends.torch.runner",
}
MOST_THREADS = 4096


def require_limits(dtype: str, device: str, threads: int | None, quantization: str | None) -> Limits:
    """What a runner may use, by a user's words; dtype auto stands for float32 until a backend is chosen. Raises InputError."""
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise InputError(Problem("dtype", ", ".join(sorted(DTYPES)), repr(dtype)))
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= MOST_THREADS):
        raise InputError(Problem("threads", "an integer of at least 1, or None", repr(threads)))
    if quantization is not None and (not isinstance(quantization, str) or quantization not in backends.QUANTIZATIONS):
        raise InputError(Problem("quantization", "None or " + ", ".join(backends.QUANTIZATIONS), repr(quantization)))
    return Limits(dtype=DTYPES[dtype], device=device, threads=threads, quantization=quantization)


def choose_backend(backend: str, wanted: backends.Wanted) -> backends.Choice:
    """As engine_kernels.backends.resolve; raises InputError for what is no name, BackendUnavailable with every reason."""
    for name, value in (("backend", backend), ("device", wanted.device)):
        if not isinstance(value, str):
            raise InputError(Problem(name, "a name", repr(value)))
    try:
        return backends.resolve(backend, wanted)
    except KernelError as error:
        raise BackendUnavailable(Problem(error.argument, error.expected, error.got)) from None


def build_runner(backend: str, stack: Stack, folded: Folded, limits: Limits) -> Runner:
    """The Runner of a backend of RUNNERS, whose module is imported now; raises BackendUnavailable."""
    runner: Runner = import_module(RUNNERS[backend]).build(stack, folded, limits)
    return runner
