"""The `cuda` backend: the GPU runner over the kernels of CUDA C++."""

from __future__ import annotations

import os
from typing import Any

import torch

from engine.backends.gpu.rows import Rows
from engine.backends.gpu.runner import GpuLayer, GpuRunner
from engine.backends.plan import Stack
from engine.backends.runner import Batch, Folded, Limits, Runner, StepResult
from engine.backends.torch.device import gpu_device
from engine.backends.torch.runner import torch_dtype
from engine.errors import BackendUnavailable, EngineError, Problem
from engine_kernels.backends import CUDA_DTYPES, emulated
from engine_kernels.cuda_decode import DecodeLayer, DecodeStep
from engine_kernels.cuda_ops import CudaKernels
from engine_kernels.errors import KernelError
from engine_kernels.gpu_ops import plain


def build(stack: Stack, folded: Folded, limits: Limits) -> Runner:
    """A GpuRunner on limits.device; raises BackendUnavailable where the device is not there or the dtype is not run.

    EngineError where HEADCOUNT_CUDA_PATIENCE is no time, or HEADCOUNT_DECODE_STEP is set to another word than never.
    """
    if limits.dtype not in CUDA_DTYPES:
        raise BackendUnavailable(Problem("dtype", " or ".join(CUDA_DTYPES) + " for backend cuda", limits.dtype))
    device = gpu_device(limits.device, without_gpu=emulated(), variable="HEADCOUNT_CUDA_EMULATED")
    try:
        return CudaRunner(stack, folded, torch_dtype(limits.dtype), device, CudaKernels(device))
    except KernelError as error:
        raise EngineError(Problem(error.argument, error.expected, error.got)) from None


class CudaRunner(GpuRunner):
    """The GPU runner, whose decode steps are one launch where the kernel for whole models runs them."""

    kernels: CudaKernels

    def __init__(self, stack: Stack, folded: Folded, dtype: torch.dtype, device: torch.device, kernels: CudaKernels) -> None:
        super().__init__(stack, folded, dtype, device, kernels)
        self._whole: DecodeStep | None = None
        self._refusal = _refusal(stack)
        if self._refusal is None:
            with self._on_device():
                self._whole = DecodeStep(kernels.module, device, stack.hidden, [_decode_layer(layer) for layer in self.layers])
            self._refusal = self._whole.refusal

    def step(self, batch: Batch) -> StepResult:
        result = super().step(batch)
        self.check_after_replays()
        return result

    def check_after_replays(self) -> None:
        """Waits for the decode steps so far; raises RuntimeError where one was given up, as step does. For benchmarks."""
        if self._whole is not None and self._refusal is None:
            self._whole.check()

    def describe(self) -> dict[str, Any]:
        if self._whole is None or self._refusal is not None:
            return {**super().describe(), "decode": f"kernels of each layer: {self._refusal}"}
        clusters, cluster = self._whole.grid(1)
        decode = f"one launch for all layers, up to 16 sequences; {clusters} clusters of {cluster} blocks at one"
        return {**super().describe(), "decode": decode}

    def _decode_layers(self, hidden: torch.Tensor, rows: Rows) -> torch.Tensor:
        if self._whole is None or not self._whole.fits(len(hidden)):
            return super()._decode_layers(hidden, rows)
        self.kernels.calls["decode_step"] += 1
        rings = [None if kept is None else (kept.keys, kept.values) for kept in self._rings]
        return self._whole(hidden, rows.slots, rows.positions, rings)


def _refusal(stack: Stack) -> str | None:
    """Why the decode kernel is not for such models at all; HEADCOUNT_DECODE_STEP=never keeps it from every model."""
    word = os.environ.get("HEADCOUNT_DECODE_STEP")
    if word == "never":
        return "HEADCOUNT_DECODE_STEP=never"
    if word is not None:
        raise KernelError("HEADCOUNT_DECODE_STEP", "never, or not to be set", repr(word))
    if not stack.causal:
        return "it is for streams"
    if any(layer.feed_forward for layer in stack.layers):
        return "it runs no feed-forward"
    return None


def _decode_layer(layer: GpuLayer) -> DecodeLayer:
    if layer.plan.attention is None:
        return DecodeLayer(layer.attention_norm, layer.plan.norm_first, layer.output_bias)
    return DecodeLayer(
        layer.attention_norm,
        layer.plan.norm_first,
        layer.output_bias,
        plain(layer.qkv),
        layer.qkv_bias,
        plain(layer.output),
        layer.tables,
        layer.visibility,
    )
