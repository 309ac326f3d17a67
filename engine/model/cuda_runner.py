"""The `cuda` backend: the GPU runner over the kernels of CUDA C++."""

from __future__ import annotations

import torch

from engine.errors import BackendUnavailable, Problem
from engine.model.gpu_runner import GpuRunner
from engine.model.plan import Stack
from engine.model.runner import Folded, Limits, Runner
from engine.model.torch_runner import DTYPES
from engine_kernels.backends import CUDA_DTYPES, emulated
from engine_kernels.cuda_ops import CudaKernels


def build(stack: Stack, folded: Folded, limits: Limits) -> Runner:
    """A GpuRunner on limits.device; raises BackendUnavailable where the device is not there or the dtype is not run."""
    if limits.dtype not in CUDA_DTYPES:
        raise BackendUnavailable(Problem("dtype", " or ".join(CUDA_DTYPES) + " for backend cuda", limits.dtype))
    name = limits.device if limits.device != "auto" else "cpu" if emulated() else "cuda"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BackendUnavailable(Problem("device", "auto, cuda or cuda:N", repr(name))) from None
    if device.type != ("cpu" if emulated() else "cuda"):
        raise BackendUnavailable(Problem("device", "a GPU, or the CPU under ENGINE_CUDA_EMULATED=1", repr(name)))
    return GpuRunner(stack, folded, DTYPES[limits.dtype], device, CudaKernels(device))
