"""What the GPU backends share: the operations of a layer over packed rows, and what passes between them.

The `triton` and `cuda` backends implement GpuKernels; engine/model/gpu_runner.py composes layers from it. Equations: ops.py.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from engine_kernels.ops import AttentionTables, Visibility


@dataclass(frozen=True)
class Int8:
    """A matrix that is multiplied with in `dtype`: values [.., rows, depth] int8, scale [.., rows] float32 (engine_kernels/int8.py).

    Persistent values [H, N, D], which are summed over N, have their scales by column, [H, D].
    """

    values: torch.Tensor
    scale: torch.Tensor
    dtype: torch.dtype

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.scale.nbytes


Matrix = torch.Tensor | Int8
Tables = AttentionTables[Matrix]  # only distances and persistent vectors are ever int8
Pair = tuple[torch.Tensor, torch.Tensor]  # keys and values


@dataclass(frozen=True)
class Norm:
    """A LayerNorm: gain and shift [depth] float32."""

    gain: torch.Tensor
    shift: torch.Tensor
    eps: float


@dataclass(frozen=True)
class Sequences:
    """Sequences of packed rows on the device, all [sequences]; the key of row j < 0 stands in slot (offset + j) mod capacity."""

    first_rows: torch.Tensor
    lengths: torch.Tensor
    slots: torch.Tensor
    offsets: torch.Tensor
    positions: torch.Tensor


def stored(matrix: Matrix | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The stored numbers of a matrix, and the scales of its rows if it is int8."""
    return (matrix.values, matrix.scale) if isinstance(matrix, Int8) else (matrix, None)


class GpuKernels(Protocol):
    """The kernels of one backend on one device; `calls` counts what they started, by name.

    Rows of all sequences are packed: x [rows, depth], query [rows, H, D]. Rings are [slots, H, capacity, D], packed keys and values of new
    rows rings of capacity 1. Head counts are grid sizes. Nothing waits for the device. The numbers of an int8
    matrix are multiplied with as they are, in its dtype, and sums then with the scales.
    """

    calls: Counter[str]

    def project_heads(
        self, x: torch.Tensor, weight: Matrix, bias: torch.Tensor | None, norm: Norm | None, rings: Pair, slots: torch.Tensor,
        positions: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """Queries [rows, H, D] of norm(x); keys and values go into rings by slots and positions [rows]. weight [3, H, D, depth]."""
        ...

    def attend(
        self, query: torch.Tensor, rings: Pair, new: Pair | None, single: Sequences | None, several: Sequences | None, lengths: np.ndarray,
        tables: Tables, see: Visibility,
    ) -> torch.Tensor:  # fmt: skip
        """Attended rows [rows, H, D] in the dtype of the query.

        single: sequences of one row, whose rings hold every key they see; several: sequences of lengths [sequences] rows, on the host too,
        which see their rings as they stood before and the new keys and values [rows, H, 1, D].
        """
        ...

    def write_rings(self, new: Pair, rings: Pair, source_rows: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor) -> None:
        """New keys and values of source_rows, no two of one slot and place, into rings."""
        ...

    def project(
        self, x: torch.Tensor, weight: Matrix, bias: torch.Tensor | None = None, *, norm: Norm | None = None, relu: bool = False,
        residual: torch.Tensor | None = None, dtype: torch.dtype = torch.float32,
    ) -> torch.Tensor:  # fmt: skip
        """residual + relu(norm(x) · weightᵀ + bias), each part where asked for; weight [columns, depth], result in `dtype`."""
        ...

    def normalise(self, x: torch.Tensor, norm: Norm) -> torch.Tensor:
        """LayerNorm of x [rows, depth]; float32."""
        ...

    def score_words(
        self, x: torch.Tensor, weight: Matrix, bias: torch.Tensor | None, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """log Σ exp(logits) and the target's logit, 0 where it is -1, both [rows] float32, of logits = x · weightᵀ + bias."""
        ...

    def describe(self) -> dict[str, Any]:
        """Which operations, of which version, for which architecture."""
        ...
