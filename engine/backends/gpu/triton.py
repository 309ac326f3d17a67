"""The `triton` backend: the GPU runner over Triton's kernels."""

from __future__ import annotations

from engine.backends.gpu.runner import GpuRunner
from engine.backends.plan import Stack
from engine.backends.runner import Folded, Limits, Runner
from engine.backends.torch.device import gpu_device
from engine.backends.torch.runner import torch_dtype
from engine_kernels.backends import interpreted
from engine_kernels.triton_ops.kernels import TritonKernels
from engine_kernels.triton_ops.launch import launcher


def build(stack: Stack, folded: Folded, limits: Limits) -> Runner:
    """A GpuRunner on limits.device; raises BackendUnavailable where the device is not there."""
    device = gpu_device(limits.device, without_gpu=interpreted(), variable="TRITON_INTERPRET")
    return GpuRunner(stack, folded, torch_dtype(limits.dtype), device, TritonKernels(launcher(device)), limits.quantization)
