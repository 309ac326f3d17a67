"""What the sections of a run share: sizes, the device and its clock, and the figures they add."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from bench.cases import S1, TINY, Geometry
from engine.errors import EngineError, Problem
from engine_kernels.backends import Wanted, resolve
from engine_kernels.cuda_ops import CudaKernels
from engine_kernels.errors import KernelError
from engine_kernels.gpu_ops import GpuKernels
from engine_kernels.testing import difference, tolerance
from engine_kernels.triton_ops.kernels import TritonKernels
from engine_kernels.triton_ops.launch import Launcher, launcher


@dataclass(frozen=True)
class Sizes:
    """Rows and heads of the attention cases, batches of the decode cases, rounds of every timing, elements of the card's own figures."""

    geometry: Geometry
    rows: tuple[int, ...]
    heads: tuple[int, ...]
    batches: tuple[int, ...]
    rounds: int
    copied: int
    square: int


SIZES = {
    False: Sizes(S1, (192, 768, 3072, 12288), (8, 3), (1, 4, 16, 64, 256), 20, 2**29, 8192),
    True: Sizes(replace(TINY, head_dim=8), (24,), (2,), (3,), 1, 2**10, 64),
}


@dataclass
class Run:
    """One run: `figures` hold section, case and numbers; `missing` what could not be had and why; `failed` gates that did not pass."""

    sizes: Sizes
    device: torch.device
    dtype: str
    interpreted: bool
    deadline: float  # of time.monotonic()
    backends: list[str] = field(default_factory=list)  # of ours, those that run here
    figures: list[dict[str, Any]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    postponed: list[tuple[str, Callable[[], None], float]] = field(default_factory=list)  # what compiles for long: name, work, seconds
    failed: list[str] = field(default_factory=list)

    @property
    def torch_dtype(self) -> torch.dtype:
        return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[self.dtype]

    def launcher(self) -> Launcher:
        return launcher(self.device)

    def kernels(self, backend: str) -> GpuKernels:
        return CudaKernels(self.device) if backend == "cuda" else TritonKernels(self.launcher())

    def find_backends(self) -> None:
        """Fill `backends`; why one does not run is noted as missing."""
        for name in ("triton", "cuda"):
            try:
                self.backends.append(resolve(name, Wanted(dtype=self.dtype)).name)
            except KernelError as error:
                self.missing.append(error.got)

    def add(self, section: str, case: str, **numbers: Any) -> None:
        self.figures.append({"section": section, "case": case, **numbers})

    def figure(self, section: str, case: str) -> dict[str, Any] | None:
        return next((f for f in self.figures if (f["section"], f["case"]) == (section, case)), None)

    def gate(self, name: str, result: ArrayLike, plain: ArrayLike, exact: ArrayLike) -> dict[str, float] | None:
        """The difference from `exact` and its limit by the one tolerance rule; None, and a failure noted, where it is beyond."""
        found, limit = difference(result, exact), tolerance(plain, exact, self.dtype)
        if found <= limit:
            return {"difference": found, "limit": limit}
        self.failed.append(f"{name}: {found:.3e} from float64, allowed {limit:.3e}")
        return None

    def postpone(self, name: str, work: Callable[[], None], takes: float) -> None:
        """A part for the end of the run, if then there are about as many seconds left as it takes."""
        self.postponed.append((name, work, takes))

    def attempt(self, name: str, work: Callable[[], None], takes: float = 0.0) -> None:
        """A part of the run: what stops it is noted as missing, and the rest goes on; nothing starts that would end after the deadline."""
        if time.monotonic() + takes > self.deadline:
            self.missing.append(f"{name}: no time was left")
            return
        try:
            work()
        except Exception as error:  # whatever it is, a GPU at hand is too rare to lose the other figures
            self.missing.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")

    def seconds(self, work: Callable[[], object]) -> dict[str, float]:
        """Median, tenth and ninetieth percentile of one call, by events on a GPU, after two calls that are not counted."""
        for _ in range(0 if self.interpreted else 2):
            work()
        samples = [self._once(work) for _ in range(self.sizes.rounds)]
        low, middle, high = (float(value) for value in np.percentile(samples, (10, 50, 90)))
        return {"seconds": middle, "p10": low, "p90": high}

    def _once(self, work: Callable[[], object]) -> float:
        if self.device.type != "cuda":
            start = time.perf_counter()
            work()
            return time.perf_counter() - start
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        first.record()
        work()
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last)) / 1e3


def begin(*, interpret: bool, tiny: bool, dtype: str, minutes: float) -> Run:
    """A run on the first GPU, or in the interpreter; raises EngineError where there is neither."""
    if interpret:  # float16: what Triton's interpreter and the CUDA kernels both compute
        run = Run(SIZES[tiny], torch.device("cpu"), "float16", True, time.monotonic() + 60 * minutes)
        run.find_backends()
        return run
    if not torch.cuda.is_available():
        found = "none that PyTorch sees"
        raise EngineError(Problem("device", "a GPU", found), hint="--interpret --tiny tries everything without one, and has no figures")
    torch.backends.cuda.matmul.allow_tf32 = False  # float32 is IEEE on both sides of a comparison
    torch.backends.cudnn.allow_tf32 = False
    run = Run(SIZES[tiny], torch.device("cuda"), dtype, False, time.monotonic() + 60 * minutes)
    run.find_backends()
    return run


def host(tensor: torch.Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().double().cpu().numpy()
    return array
