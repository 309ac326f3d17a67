"""What the GPU backends share: the operations of a layer over packed rows, and what passes between them.

The `triton` and `cuda` backends implement GpuKernels; engine/backends/gpu/runner.py composes layers from it. Equations: ops.py.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
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
    """Sequences of packed rows on the device, all [sequences]; the key of row j < 0 stands in slot (offset + j) mod capacity.

    tiles: a backend's lists of their tiles of rows, by rows of a tile, made by the first layer that needs them.
    """

    first_rows: torch.Tensor
    lengths: torch.Tensor
    slots: torch.Tensor
    offsets: torch.Tensor
    positions: torch.Tensor
    tiles: dict[int, Pair] = field(default_factory=dict)


def row_tiles(sequences: Sequences, lengths: np.ndarray, tile_rows: int) -> Pair:
    """The sequence and the first row of every tile of rows, no tile in two sequences; int32 [tiles] each. Listed once for all layers."""
    if tile_rows not in sequences.tiles:
        tiles = -(-lengths // tile_rows)
        sequence = np.repeat(np.arange(len(lengths)), tiles)
        row = (np.arange(len(sequence)) - np.repeat(np.cumsum(tiles) - tiles, tiles)) * tile_rows
        device = sequences.first_rows.device
        sequences.tiles[tile_rows] = _to(device, sequence), _to(device, row)
    return sequences.tiles[tile_rows]


def _to(device: torch.device, numbers: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(numbers.astype(np.int32)).to(device)


def stored(matrix: Matrix | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The stored numbers of a matrix, and the scales of its rows if it is int8."""
    return (matrix.values, matrix.scale) if isinstance(matrix, Int8) else (matrix, None)


def plain(matrix: Matrix | None) -> torch.Tensor | None:
    """A matrix as a backend without int8 holds it."""
    assert not isinstance(matrix, Int8), "quantization is refused where int8 is not run"
    return matrix


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
        tables: Tables, visibility: Visibility,
    ) -> torch.Tensor:  # fmt: skip
        """Attended rows [rows, H, D] in the dtype of the query.

        single: sequences of one row, whose rings hold every key they see; several: sequences of lengths [sequences] rows, on the host too,
        which see their rings as they stood before and the new keys and values [rows, H, 1, D].
        """
        ...

    def attend_bidirectional(self, query: torch.Tensor, new: Pair, sequences: Sequences, lengths: np.ndarray) -> torch.Tensor:
        """Attended rows [rows, H, D] in the dtype of the query: every row sees every row of its sequence, and nothing is kept.

        new: keys and values [rows, H, 1, D]; lengths [sequences], on the host too, add up to rows.
        """
        ...

    def write_rings(self, new: Pair, rings: Pair, source_rows: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor) -> None:
        """New keys and values of source_rows, no two of one slot and place, into rings."""
        ...

    def project(
        self, x: torch.Tensor, weight: Matrix, bias: torch.Tensor | None = None, *, norm: Norm | None = None,
        activation: str | None = None, residual: torch.Tensor | None = None, dtype: torch.dtype = torch.float32,
    ) -> torch.Tensor:  # fmt: skip
        """residual + activation(norm(x) · weightᵀ + bias), each part where asked for; weight [columns, depth], result in `dtype`.

        activation: relu, gelu, gelu_tanh, quick_gelu or silu, as ops.py's feed_forward has them.
        """
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
