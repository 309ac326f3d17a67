"""Which backend runs a model: one ordered table, asked once at load, every refusal kept with its reason."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, replace

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


DTYPES = {  # of weights and caches → the backends that run them
    "float32": ("triton", "cpu", "torch"),
    "bfloat16": ("cuda", "triton", "cpu", "torch"),
    "float16": ("cuda", "triton", "torch"),
}
CPU_DTYPES, CUDA_DTYPES = (tuple(name for name, backends in DTYPES.items() if backend in backends) for backend in ("cpu", "cuda"))
LARGEST_CUDA_HEAD = 128
QUANTIZATIONS = {"int8": ("triton", "cpu")}  # what weights may be quantised to → the backends that run it


@dataclass(frozen=True)
class Wanted:
    """What a load asks of a backend.

    dtype: auto = whatever the backend prefers; head_dims: sizes of the model's heads; named: whether the user asked for this very backend.
    """

    device: str = "auto"
    dtype: str = "auto"
    quantization: str | None = None
    head_dims: tuple[int, ...] = ()
    named: bool = False


Probe = Callable[[Wanted], str | None]


# What a GPU has run: the file of bench/results that says so. None: nothing yet, so `auto` passes it over and README.md says untried.
TRIED: dict[str, str | None] = {"cuda": None, "triton": None}
GPU_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # of NVIDIA's driver, AMD's, and either under WSL


def no_gpu() -> str | None:
    """Why there is no GPU to use, without importing PyTorch; None where a driver is there."""
    if any(os.path.exists(file) for file in GPU_FILES):
        return None
    return "there is no GPU driver on this machine"


def interpreted() -> bool:
    """Whether Triton runs its interpreter instead of a GPU: TRITON_INTERPRET, read by Triton when it is first imported."""
    return _is_set("TRITON_INTERPRET")


def emulated() -> bool:
    """Whether the CUDA kernels run in the emulator, for tests: HEADCOUNT_CUDA_EMULATED; KernelError where its old name is set."""
    if os.environ.get("ENGINE_CUDA_EMULATED"):
        raise KernelError("ENGINE_CUDA_EMULATED", "its new name HEADCOUNT_CUDA_EMULATED", "the old one")
    return _is_set("HEADCOUNT_CUDA_EMULATED")


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes", "on", "y")


def _probe_cuda(wanted: Wanted) -> str | None:
    if not wanted.named and TRIED["cuda"] is None:
        return "its kernels have not run on a GPU yet: it runs when named, backend='cuda'"
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed: pip install 'headcount[torch]'"
    if (reason := _no_emulated_gpu(wanted) if emulated() else _no_nvidia_gpu(wanted)) is not None:
        return reason
    if odd := [size for size in wanted.head_dims if size % 8 or size > LARGEST_CUDA_HEAD]:
        return f"runs heads of 8, 16, … {LARGEST_CUDA_HEAD} numbers, and this model has heads of {odd[0]}; backend triton runs them"
    if wanted.dtype not in ("auto", *CUDA_DTYPES):
        return f"runs {' and '.join(CUDA_DTYPES)}, and dtype={wanted.dtype!r} was asked for; backend triton runs it"
    return None


def _no_emulated_gpu(wanted: Wanted) -> str | None:
    if wanted.device not in ("auto", "cpu"):
        return f"the emulated GPU (HEADCOUNT_CUDA_EMULATED) is the CPU, and device={wanted.device!r} was asked for"
    if importlib.util.find_spec("engine_kernels._cuda_emulated") is None:
        return "the module _cuda_emulated is not there: install with the CMake option HEADCOUNT_EMULATED_CUDA=ON"
    return None


def _no_nvidia_gpu(wanted: Wanted) -> str | None:
    if wanted.device == "cpu":
        return "runs on GPUs, and device='cpu' was asked for"
    if (reason := no_gpu()) is not None:
        return reason
    if importlib.util.find_spec("engine_kernels._cuda") is None:
        return f"built without CUDA: {importlib.import_module('engine_kernels._native').without_cuda()}"
    torch = importlib.import_module("torch")
    if torch.version.hip is not None or not torch.cuda.is_available():
        return "PyTorch sees no GPU of NVIDIA: this build of it is for another kind, or for none"
    try:
        capability = torch.cuda.get_device_capability("cuda" if wanted.device == "auto" else wanted.device)
    except (AssertionError, RuntimeError, ValueError):
        return f"PyTorch knows no GPU {wanted.device!r} here"
    if capability < (8, 0):
        return "needs compute capability 8.0 or newer, and this GPU has {}.{}; backend triton may run it".format(*capability)
    return None


def _probe_triton(wanted: Wanted) -> str | None:
    if not wanted.named and TRIED["triton"] is None:
        return "its tests have not run on a GPU yet: it runs when named, backend='triton'"
    if any(importlib.util.find_spec(module) is None for module in ("torch", "triton")):
        return "PyTorch and Triton are not both installed: pip install 'headcount[gpu]'"
    if interpreted():
        if not wanted.named:
            return "Triton's interpreter (TRITON_INTERPRET) is for tests: it runs when named, backend='triton'"
        if wanted.device not in ("auto", "cpu"):
            return f"Triton's interpreter (TRITON_INTERPRET) runs on the CPU, and device={wanted.device!r} was asked for"
        wrong = "Triton's interpreter (TRITON_INTERPRET) computes bfloat16 wrongly: use float32 or float16"
        return wrong if wanted.dtype == "bfloat16" else None
    if wanted.device == "cpu":
        return "runs on GPUs, and device='cpu' was asked for (for tests only, TRITON_INTERPRET=1 interprets the kernels on the CPU)"
    if (reason := no_gpu()) is not None:
        return f"{reason} (for tests only, TRITON_INTERPRET=1 interprets the kernels on the CPU)"
    if not importlib.import_module("torch").cuda.is_available():
        return "PyTorch sees no GPU: this build of it is for another kind, or for none"
    return None


def _probe_cpu(wanted: Wanted) -> str | None:
    if wanted.device not in ("auto", "cpu"):
        return f"runs on the CPU only, and device={wanted.device!r} was asked for"
    if wanted.dtype not in ("auto", *CPU_DTYPES):
        return f"runs {' and '.join(CPU_DTYPES)}, and dtype={wanted.dtype!r} was asked for"
    try:
        native = importlib.import_module("engine_kernels.native")
    except ImportError as error:
        return f"the native module does not load: {error}"
    native.instruction_set()  # a HEADCOUNT_CPU_ISA this processor lacks is an error, never a reason to run something else
    return None


def _probe_torch(wanted: Wanted) -> str | None:
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
    if name == "cuda":
        return "bfloat16", "auto: of the two that its kernels run, the one of float32's range"
    if name != "cpu":
        return "float32", "auto: exact"
    native = importlib.import_module("engine_kernels.native")
    dtype, instruction_set = native.preferred_dtype(), native.instruction_set()
    if dtype == "float32":
        return dtype, f"auto: {instruction_set} multiplies bfloat16 no faster"
    return dtype, f"auto: {instruction_set} multiplies it directly; float32 is the exact path"


def resolve(backend: str, wanted: Wanted) -> Choice:
    """The first backend of the table that runs what is wanted, or the one named; KernelError with all reasons if none does."""
    names = [name for name, _ in TABLE]
    if backend != "auto" and backend not in names:
        raise KernelError("backend", "auto, " + ", ".join(names), repr(backend))
    if wanted.quantization is not None and wanted.quantization not in QUANTIZATIONS:
        raise KernelError("quantization", "None, " + ", ".join(QUANTIZATIONS), repr(wanted.quantization))
    refusals: list[Refusal] = []
    for name, probe in TABLE:
        if backend not in ("auto", name):
            continue
        reason = probe(replace(wanted, named=backend == name)) or _refuses_quantization(name, wanted.quantization)
        if reason is None:
            return Choice(name, tuple(refusals))
        refusals.append(Refusal(name, reason))
    raise KernelError("backend", "one that can run here", "; ".join(f"{r.name}: {r.reason}" for r in refusals))
