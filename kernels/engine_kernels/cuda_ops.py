"""GpuKernels by CUDA C++: allocates what a call writes, and hands tensors and PyTorch's current stream to the compiled module."""

from __future__ import annotations

import importlib
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from engine_kernels.errors import KernelError
from engine_kernels.gpu_ops import Matrix, Norm, Pair, Sequences, Tables, row_tiles
from engine_kernels.ops import Visibility


class CudaKernels:
    """The operations of gpu_ops.py on one NVIDIA GPU, or on an emulated one; bfloat16 and float16, sums in float32.

    HEADCOUNT_HOPPER_ATTEND, read when this is made: `always` takes hopper_attend wherever it runs, however few tiles there are, `never`
    nowhere; unset, where it pays. Raises KernelError for any other word.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.calls: Counter[str] = Counter()
        self.module = importlib.import_module("engine_kernels._cuda_emulated" if device.type == "cpu" else "engine_kernels._cuda")
        self._takes_hopper = _hopper_choice(self.module)

    def project_heads(
        self,
        x: torch.Tensor,
        weight: Matrix,
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
        self.module.project_heads(x, *_norm(norm), weight, bias, query, *rings, slots, positions, scratch, self._stream())
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
        visibility: Visibility,
    ) -> torch.Tensor:
        """The constants of the layer for all rows at once, then the context of sequences of one row and of several; or hopper_attend."""
        rows, heads, head_dim = query.shape
        at_once = single is None and self._takes_hopper(head_dim, heads, lengths)
        persistent = 0 if tables.persistent_keys is None else tables.persistent_keys.shape[1]
        splits, pitch = self.module.splits_of(rows, heads, persistent), -(-visibility.reach // 16) * 16
        scores = query.new_empty((heads, rows, pitch)) if single is not None and tables.distances is not None else None
        out, stream = torch.empty_like(query), self._stream()
        attention = self.module.Attention(
            query,
            *rings,
            tables.distances,
            tables.content_bias,
            tables.position_bias,
            tables.persistent_keys,
            tables.persistent_values,
            tables.spans,
            tables.span_ramp,
            visibility.window,
            visibility.segment,
            visibility.reach,
            visibility.first_distance,
            visibility.attended_zeros,
            None if at_once else query.new_empty((splits, heads, rows, head_dim), dtype=torch.float32),
            None if at_once else query.new_empty((2, splits, heads, rows), dtype=torch.float32),
            scores,
            out,
        )
        if not at_once and (splits or scores is not None):
            self.calls["attend_constants"] += 1
            attention.constants(stream)
        if single is not None:
            self.calls["attend_ring"] += 1
            attention.ring(*_of(single), stream)
        if several is not None:
            assert new is not None
            tile_rows = self.module.hopper_tile_rows() if at_once else self.module.rows_of_a_tile(int(lengths.max()))
            self.calls["hopper_attend" if at_once else "attend_rows"] += 1
            attention.rows(*_of(several), *new, *row_tiles(several, lengths, tile_rows), tile_rows, stream)
        return out

    def attend_bidirectional(self, query: torch.Tensor, new: Pair, sequences: Sequences, lengths: np.ndarray) -> torch.Tensor:
        """Every row sees every row of its sequence."""
        out, tile_rows = torch.empty_like(query), self.module.rows_of_a_tile(int(lengths.max()))
        tiles = row_tiles(sequences, lengths, tile_rows)
        self.calls["attend_bidirectional"] += 1
        self.module.attend_bidirectional(query, *new, sequences.first_rows, sequences.lengths, *tiles, tile_rows, out, self._stream())
        return out

    def write_rings(self, new: Pair, rings: Pair, source_rows: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor) -> None:
        """New keys and values into rings."""
        self.calls["write_rings"] += 1
        self.module.write_rings(*new, *rings, source_rows, slots, positions, self._stream())

    def project(
        self,
        x: torch.Tensor,
        weight: Matrix,
        bias: torch.Tensor | None = None,
        *,
        norm: Norm | None = None,
        activation: str | None = None,
        residual: torch.Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> torch.Tensor:
        """residual + activation(norm(x) · weightᵀ + bias); dtype is float32 or that of the weight."""
        out = torch.empty((len(x), weight.shape[0]), dtype=dtype, device=x.device)
        scratch = self._rounded(x, weight)
        self.calls["project"] += 1
        self.module.project(x, *_norm(norm), weight, bias, activation or "none", residual, scratch, out, self._stream())
        return out

    def normalise(self, x: torch.Tensor, norm: Norm) -> torch.Tensor:
        """LayerNorm of x."""
        out = torch.empty_like(x)
        self.calls["normalise"] += 1
        self.module.normalise(x, *_norm(norm), out, self._stream())
        return out

    def score_words(
        self, x: torch.Tensor, weight: Matrix, bias: torch.Tensor | None, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """log Σ exp(logits) and the target's logit."""
        scratch = None
        if x.dtype == torch.float32:
            scratch = torch.empty(x.shape, dtype=weight.dtype, device=x.device)
            self.calls["round"] += len(x) > 0
        rows, parts = len(x), self.module.word_parts(len(x), weight.shape[0])
        states, everything, logit = (x.new_empty(shape, dtype=torch.float32) for shape in ((3, parts, rows), (rows,), (rows,)))
        if rows:
            self.calls.update(score_parts=1, join_parts=1)
        self.module.score_words(x, weight, bias, targets, scratch, states, everything, logit, self._stream())
        return everything, logit

    def describe(self) -> dict[str, Any]:
        """What runs."""
        architecture = "emulated"
        if self.device.type == "cuda":
            architecture = "sm_{}{}".format(*torch.cuda.get_device_capability(self.device))
        return {"operations": "engine_kernels.cuda_ops", "architecture": architecture}

    def _rounded(self, x: torch.Tensor, weight: Matrix) -> torch.Tensor | None:
        """Room for rows in the weight's dtype, where many rows are rounded before they are multiplied."""
        if x.dtype != torch.float32 or not self.module.rounds_first(len(x)):
            return None
        self.calls["round"] += 1
        return torch.empty(x.shape, dtype=weight.dtype, device=x.device)

    def _stream(self) -> int:
        return torch.cuda.current_stream(self.device).cuda_stream if self.device.type == "cuda" else 0


def _hopper_choice(module: Any) -> Callable[[int, int, np.ndarray], bool]:
    """Whether hopper_attend takes sequences of several rows: (head_dim, heads, lengths [sequences]) → bool."""

    def pays(head_dim: int, heads: int, lengths: np.ndarray) -> bool:
        tiles = int((-(-lengths // module.hopper_tile_rows())).sum())
        return bool(module.hopper_fits(head_dim, heads, tiles))

    word = os.environ.get("HEADCOUNT_HOPPER_ATTEND")
    if word is None:
        return pays
    if word == "always":
        return lambda head_dim, heads, lengths: bool(module.hopper_runs(head_dim))
    if word == "never":
        return lambda head_dim, heads, lengths: False
    raise KernelError("HEADCOUNT_HOPPER_ATTEND", "always or never, or not to be set", repr(word))


def _of(sequences: Sequences) -> tuple[torch.Tensor, ...]:
    return sequences.first_rows, sequences.lengths, sequences.slots, sequences.offsets, sequences.positions


def _norm(norm: Norm | None) -> tuple[torch.Tensor | None, torch.Tensor | None, float]:
    return (None, None, 0.0) if norm is None else (norm.gain, norm.shift, norm.eps)
