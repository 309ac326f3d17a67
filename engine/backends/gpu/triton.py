"""The `triton` backend: the GPU runner over Triton's kernels."""

from __future__ import annotations

import torch

from engine.backends.gpu.runner import GpuRunner
from engine.backends.plan import Stack
from engine.backends.runner import Folded, Limits, Runner
from engine.backends.torch.runner import torch_dtype
from engine.errors import BackendUnavailable, Problem
from engine_kernels.backends import interpreted
from engine_kernels.triton_ops.kernels import TritonKernels
from engine_kernels.triton_ops.launch import launcher


def build(stack: Stack, folded: Folded, limits: Limits) -> Runner:
    """A GpuRunner on limits.device; raises BackendUnavailable where the device is not there."""
    name = limits.device if limits.device != "auto" else "cpu" if interpreted() else "cuda"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BackendUnavailable(Problem("device", "auto, cuda or cuda:N", repr(name))) from None
    if device.type != ("cpu" if interpreted() else "cuda"):
        raise BackendUnavailable(Problem("device", "a GPU, or the CPU under TRITON_INTERPRET=1", repr(name)))
    return GpuRunner(stack, folded, torch_dtype(limits.dtype), device, TritonKernels(launcher(device)), limits.quantization)
