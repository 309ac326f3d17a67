"""What a section has in hand: sizes, the device and its clock, gates, and the figures it tells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
import triton
from numpy.typing import ArrayLike

from bench.core.cases import S1, TINY, Geometry
from bench.suites.gpu.clock import Clock
from bench.suites.gpu.plan import OURS, Part
from engine.errors import EngineError, Problem
from engine.measure.provenance import provenance
from engine_kernels.backends import Wanted, resolve
from engine_kernels.cuda_ops import CudaKernels
from engine_kernels.errors import KernelError
from engine_kernels.gpu_ops import GpuKernels
from engine_kernels.testing import difference, tolerance
from engine_kernels.triton_ops.kernels import TritonKernels
from engine_kernels.triton_ops.launch import Launcher, launcher

Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Sizes:
    """Rows and heads of the attention cases, batches of the decode cases, both the more wanted first.

    scored: sequences of a scored text; fed: tokens the gate of a decode step feeds one by one; rounds: samples of a figure.
    copied, square: elements that are copied, side of the matrices, for the card's own figures.
    """

    geometry: Geometry
    rows: tuple[int, ...]
    heads: tuple[int, ...]
    batches: tuple[int, ...]
    scored: int
    fed: int
    rounds: int
    copied: int
    square: int


SIZES = {
    False: Sizes(S1, (3072, 12288, 192, 768), (8, 3), (1, 16, 4, 64, 256), 16, S1.window + 7, 20, 2**29, 8192),
    True: Sizes(replace(TINY, hidden=64, head_dim=64), (24,), (2,), (3,), 3, 4, 1, 2**10, 64),
}


class Run:
    """One part of a run: what it finds out is told at once, so that nothing is lost when it dies."""

    def __init__(self, part: Part, device: torch.device, dtype: str, tell: Tell) -> None:
        asked = part.asked
        sizes = SIZES[asked.tiny]
        length = sizes.geometry.rows
        rows = tuple(max(1, count // length) * length for count in asked.rows or sizes.rows)  # whole sequences
        self.sizes = replace(sizes, batches=asked.batches or sizes.batches, rows=rows)
        self.backend = part.backend
        self.out = asked.out
        self.device = device
        self.dtype = dtype
        self.interpreted = asked.interpret
        self.clock = Clock(device, sizes.rounds)
        self._tell = tell

    @property
    def torch_dtype(self) -> torch.dtype:
        return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[self.dtype]

    def launcher(self) -> Launcher:
        return launcher(self.device)

    @cached_property
    def kernels(self) -> GpuKernels:
        """Those of the part's backend, where that is one of ours."""
        return CudaKernels(self.device) if self.backend == "cuda" else TritonKernels(self.launcher())

    @cached_property
    def bandwidth(self) -> float:
        """Bytes a second this card reads and writes when it copies."""
        source, target = self.copied()
        return float(2 * source.nbytes / self.clock.warm(lambda: target.copy_(source))["seconds"])

    @cached_property
    def matmul_rate(self) -> float:
        """FLOP a second of PyTorch's product of large square matrices of normal numbers."""
        a = self.square()
        return float(2 * len(a) ** 3 / self.clock.warm(lambda: a @ a)["seconds"])

    def copied(self) -> tuple[torch.Tensor, torch.Tensor]:
        source = torch.randint(-(2**15), 2**15, (self.sizes.copied,), dtype=torch.int16, device=self.device)
        return source, torch.empty_like(source)

    def square(self) -> torch.Tensor:
        return torch.randn((self.sizes.square, self.sizes.square), device=self.device).to(self.torch_dtype)

    def add(self, section: str, case: str, **numbers: Any) -> None:
        self._tell({"figure": {"section": section, "case": case, **numbers}})

    def miss(self, reason: str) -> None:
        self._tell({"missing": reason})

    def fail(self, reason: str) -> None:
        self._tell({"failed": reason})

    def gate(self, name: str, result: ArrayLike, plain: ArrayLike, exact: ArrayLike) -> dict[str, float] | None:
        """The difference from `exact` and its limit by the one tolerance rule; None, and a failure told, where it is beyond."""
        found, limit = difference(result, exact), tolerance(plain, exact, self.dtype)
        if found <= limit:
            return {"difference": found, "limit": limit}
        self.fail(f"{name}: {found:.3e} from the exact result, allowed {limit:.3e}")
        return None

    def attempt(self, name: str, work: Callable[[], None]) -> None:
        """A part of the section: what stops it is told as missing, and the rest goes on, unless the device is lost to this process."""
        self._tell({"doing": name})
        try:
            work()
        except Exception as error:  # whatever it is, a GPU at hand is too rare to lose the other figures
            self.miss(f"{name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)  # after an illegal access every later call fails: end the process here


def begin(part: Part, tell: Tell) -> Run | None:
    """A run of this process on the first GPU, or in the interpreter; None, and the reason told as missing, without the part's backend.

    Raises EngineError where there is neither.
    """
    if part.asked.interpret:
        device = torch.device("cpu")
    elif torch.cuda.is_available():
        device = torch.device("cuda")
        torch.backends.cuda.matmul.allow_tf32 = False  # float32 is IEEE on both sides of a comparison
        torch.backends.cudnn.allow_tf32 = False
    else:
        raise EngineError(Problem("device", "a GPU", "none that PyTorch sees"), hint="--interpret --tiny tries everything without one")
    if not part.described:
        name = None if part.asked.interpret else torch.cuda.get_device_name(device)
        tell({"about": {"device": name, "triton": triton.__version__, **provenance()}})
    if part.backend in OURS:
        try:
            resolve(part.backend, Wanted(dtype=part.asked.dtype))
        except KernelError as error:
            tell({"missing": error.got})
            return None
    return Run(part, device, part.asked.dtype, tell)


def started(before: Counter[str], after: Counter[str]) -> list[str]:
    """Names of the kernels that were started between two states of `GpuKernels.calls`."""
    return sorted(name for name in after if after[name] > before[name])


def host(tensor: torch.Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().double().cpu().numpy()
    return array
