"""GpuKernels by Triton: one launcher, and the launch functions bound to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton

from engine_kernels.gpu_ops import Matrix, Norm, Pair, Sequences, Tables
from engine_kernels.ops import Visibility
from engine_kernels.triton_ops import projections, vocabulary
from engine_kernels.triton_ops.attention import attend_constants, attend_ring, attend_rows
from engine_kernels.triton_ops.bidirectional import attend_bidirectional
from engine_kernels.triton_ops.launch import Launcher


class TritonKernels:
    """The operations of gpu_ops.py on the device of a launcher."""

    def __init__(self, launch: Launcher) -> None:
        self._launch = launch
        self.calls = launch.calls

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
        return projections.project_heads(self._launch, x, weight, bias, norm, rings, slots, positions)

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
        """The constants of the layer for all rows at once, then the context of sequences of one row and of several."""
        constants = attend_constants(self._launch, query, tables, visibility)
        attended = torch.empty_like(query)
        if single is not None:
            attend_ring(self._launch, query, rings, constants, single, tables, visibility, attended)
        if several is not None:
            assert new is not None
            attend_rows(self._launch, query, rings, new, constants, several, lengths, tables, visibility, attended)
        return attended

    def attend_bidirectional(self, query: torch.Tensor, new: Pair, sequences: Sequences, lengths: np.ndarray) -> torch.Tensor:
        """Every row over all of its sequence."""
        attended = torch.empty_like(query)
        attend_bidirectional(self._launch, query, new, sequences, lengths, attended)
        return attended

    def write_rings(self, new: Pair, rings: Pair, source_rows: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor) -> None:
        """New keys and values into rings."""
        projections.write_rings(self._launch, new, rings, source_rows, slots, positions)

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
        """residual + activation(norm(x) · weightᵀ + bias)."""
        return projections.project(self._launch, x, weight, bias, norm=norm, activation=activation, residual=residual, dtype=dtype)

    def normalise(self, x: torch.Tensor, norm: Norm) -> torch.Tensor:
        """LayerNorm of x."""
        return projections.normalise(self._launch, x, norm)

    def score_words(
        self, x: torch.Tensor, weight: Matrix, bias: torch.Tensor | None, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """log Σ exp(logits) and the target's logit."""
        return vocabulary.score_words(self._launch, x, weight, bias, targets)

    def describe(self) -> dict[str, Any]:
        """What runs."""
        return {"operations": "engine_kernels.triton_ops", "triton": triton.__version__, "architecture": self._launch.architecture}
