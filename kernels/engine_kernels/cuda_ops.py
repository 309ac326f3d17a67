"""GpuKernels by CUDA C++: allocates what a call writes, and hands tensors and PyTorch's current stream to the compiled module."""

from __future__ import annotations

import importlib
from collections import Counter
from typing import Any

import numpy as np
import torch

from engine_kernels.gpu_ops import Norm, Pair, Sequences, Tables, row_tiles
from engine_kernels.ops import Visibility


class CudaKernels:
    """The operations of gpu_ops.py on one NVIDIA GPU, or on the CPU that plays one; bfloat16 and float16, sums in float32."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.calls: Counter[str] = Counter()
        self._module = importlib.import_module("engine_kernels._cuda_emulated" if device.type == "cpu" else "engine_kernels._cuda")

    def project_heads(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        norm: Norm | None,
        rings: Pair,
        slots: torch.Tensor,
        positions: torch.Tensor,
    ) -> torch.Tensor:
        """Queries of norm(x); keys and values into rings."""
        _, heads, head_dim, _ = weight.shape
        query = torch.empty((len(x), heads, head_dim), dtype=weight.dtype, device=x.device)
        scratch = self._rounded(x, weight)
        bias = None if bias is None else bias.reshape(weight.shape[:3])
        self.calls["project_heads"] += 1
        self._module.project_heads(x, *_norm(norm), weight, bias, query, *rings, slots, positions, scratch, self._stream())
        return query

    def attend(
        self,
        query: torch.Tensor,
        rings: Pair,
        new: Pair | None,
        single: Sequences | None,
        several: Sequences | None,
        lengths: np.ndarray,
        tables: Tables,
        see: Visibility,
    ) -> torch.Tensor:
        """The constants of the layer for all rows at once, then the context of sequences of one row and of several."""
        rows, heads, head_dim = query.shape
        persistent = 0 if tables.persistent_keys is None else tables.persistent_keys.shape[1]
        splits, pitch = self._module.splits_of(rows, heads, persistent), -(-see.reach // 16) * 16
        scores = query.new_empty((heads, rows, pitch)) if single is not None and tables.distances is not None else None
        out, stream = torch.empty_like(query), self._stream()
        attention = self._module.Attention(
            query,
            *rings,
            tables.distances,
            tables.content_bias,
            tables.position_bias,
            tables.persistent_keys,
            tables.persistent_values,
            tables.spans,
            tables.span_ramp,
            see.window,
            see.segment,
            see.reach,
            see.first,
            see.attended_zeros,
            query.new_empty((splits, heads, rows, head_dim), dtype=torch.float32),
            query.new_empty((2, splits, heads, rows), dtype=torch.float32),
            scores,
            out,
        )
        if splits or scores is not None:
            self.calls["attend_constants"] += 1
            attention.constants(stream)
        if single is not None:
            self.calls["attend_ring"] += 1
            attention.ring(*_of(single), stream)
        if several is not None:
            assert new is not None
            tile_rows = attention.rows_of_a_tile(int(lengths.max()))
            self.calls["attend_rows"] += 1
            attention.rows(*_of(several), *new, *row_tiles(several, lengths, tile_rows), tile_rows, stream)
        return out

    def write_rings(self, new: Pair, rings: Pair, source_rows: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor) -> None:
        """New keys and values into rings."""
        self.calls["write_rings"] += 1
        self._module.write_rings(*new, *rings, source_rows, slots, positions, self._stream())

    def project(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        *,
        norm: Norm | None = None,
        relu: bool = False,
        residual: torch.Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> torch.Tensor:
        """residual + relu(norm(x) · weightᵀ + bias); dtype is float32 or that of the weight."""
        out = torch.empty((len(x), len(weight)), dtype=dtype, device=x.device)
        scratch = self._rounded(x, weight)
        self.calls["project"] += 1
        self._module.project(x, *_norm(norm), weight, bias, relu, residual, scratch, out, self._stream())
        return out

    def normalise(self, x: torch.Tensor, norm: Norm) -> torch.Tensor:
        """LayerNorm of x."""
        out = torch.empty_like(x)
        self.calls["normalise"] += 1
        self._module.normalise(x, *_norm(norm), out, self._stream())
        return out

    def score_words(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """log Σ exp(logits) and the target's logit."""
        scratch = None
        if x.dtype == torch.float32:
            scratch = torch.empty(x.shape, dtype=weight.dtype, device=x.device)
            self.calls["round"] += len(x) > 0
        rows, parts = len(x), self._module.word_parts(len(x), len(weight))
        states, everything, logit = (x.new_empty(shape, dtype=torch.float32) for shape in ((3, parts, rows), (rows,), (rows,)))
        if rows:
            self.calls.update(score_parts=1, join_parts=1)
        self._module.score_words(x, weight, bias, targets, scratch, states, everything, logit, self._stream())
        return everything, logit

    def describe(self) -> dict[str, Any]:
        """What runs."""
        architecture = "emulated"
        if self.device.type == "cuda":
            architecture = "sm_{}{}".format(*torch.cuda.get_device_capability(self.device))
        return {"operations": "engine_kernels.cuda_ops", "architecture": architecture}

    def _rounded(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor | None:
        """Room for rows in the weight's dtype, where many rows are rounded before they are multiplied."""
        if x.dtype != torch.float32 or not self._module.rounds_first(len(x)):
            return None
        self.calls["round"] += 1
        return torch.empty(x.shape, dtype=weight.dtype, device=x.device)

    def _stream(self) -> int:
        return torch.cuda.current_stream(self.device).cuda_stream if self.device.type == "cuda" else 0


def _of(sequences: Sequences) -> tuple[torch.Tensor, ...]:
    return sequences.first_rows, sequences.lengths, sequences.slots, sequences.offsets, sequences.positions


def _norm(norm: Norm | None) -> tuple[torch.Tensor | None, torch.Tensor | None, float]:
    return (None, None, 0.0) if norm is None else (norm.gain, norm.shift, norm.eps)
