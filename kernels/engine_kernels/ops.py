"""THE CONTRACT: the operations a backend of Headcount implements, their shapes, units, errors and equations.

Dims: B sequences, T rows of each, H heads, D numbers per head, N persistent vectors, W = reach, the most keys a row sees, d hidden size.
Distances: row i of `distances` is distance first_distance + i. Tensors are those of the backend; sizes are plain integers; never a spec.
Scores, softmax and norms are computed in float32 whatever the dtype of the operands; sums of partial results are in index order.
Sources: All-attention and pruning arXiv 2110.03252, persistent memory arXiv 1907.01470, adaptive span arXiv 1905.07799,
Transformer-XL arXiv 1901.02860.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

Tensor = TypeVar("Tensor")
Constant = TypeVar("Constant", covariant=True)


@dataclass(frozen=True)
class Visibility:
    """Which keys a row sees.

    Distances first_distance .. first_distance + n - 1, n = window, plus position mod segment where segment > 0; at most reach.
    first_distance: 0 where a row sees itself, else 1.
    attended_zeros: distances beyond the row's position exist, as the projection of zero rows; otherwise they do not exist.
    bidirectional: every key of the row's sequence instead, before and behind it; window, segment and reach are 0.
    """

    window: int
    segment: int
    reach: int
    first_distance: int
    attended_zeros: bool
    bidirectional: bool = False


@dataclass(frozen=True)
class AttentionTables(Generic[Constant]):
    """The constants of one layer's attention.

    distances [H or 1, W, D] or None; content_bias, position_bias [H, D] or None; persistent_keys [H, N, D], persistent_values [H, N, D]
    (already × √N) or None; spans [H] float32 or None with span_ramp > 0.
    """

    distances: Constant | None
    content_bias: Constant | None
    position_bias: Constant | None
    persistent_keys: Constant | None
    persistent_values: Constant | None
    spans: Constant | None
    span_ramp: int


class Ops(Protocol[Tensor]):
    """The operations. A backend may fuse several of them in one call; its results keep to the tolerance rule of testing.py."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x [.., in] · weight [out, in]ᵀ + bias [out]; operands in weight's dtype, result float32."""
        ...

    def layer_norm(self, x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
        """(x - mean) / sqrt(variance + eps) · gain + bias over the last dimension, float32."""
        ...

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, positions: Tensor, tables: AttentionTables[Tensor], visibility: Visibility
    ) -> Tensor:
        """Attention of T new rows per sequence, in one softmax over visible keys and persistent vectors.

        query [B, H, T, D]; keys, values [B, H, W + T, D]: the W rows before the first new one, then the new ones; positions [B] int64 of
        row 0. Result [B, H, T, D] float32.

            a_ij = [(q_i + content_bias) · k_j + (q_i + position_bias) · distances[dist]] / √D,  dist = i - j visible
            p_in = q_i · persistent_keys_n
            A = softmax over [a, p];  with spans: A_ij *= clamp((1 - dist + span) / ramp + 1, 0, 1), then A /= (sum A + 1e-8)
            o_i = Σ A_ij v_j + Σ A_in persistent_values_n
        """
        ...

    def attend_cached(
        self, query: Tensor, keys: Tensor, values: Tensor, positions: Tensor, tables: AttentionTables[Tensor], visibility: Visibility
    ) -> Tensor:
        """The same for one row per sequence against its ring; query [B, H, D], keys and values [B, H, W, D], result [B, H, D] float32.

        Slot p mod W holds position p. The ring already holds the row itself where first_distance = 0, the W rows before it where it is 1.
        """
        ...

    def attend_bidirectional(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Bidirectional attention of whole sequences; query, keys, values [B, H, T, D], result [B, H, T, D] float32.

        A = softmax over all j of q_i · k_j / √D;  o_i = Σ A_ij v_j      (arXiv 1706.03762, equation 1)
        """
        ...

    def feed_forward(
        self, x: Tensor, up: Tensor, up_bias: Tensor | None, down: Tensor, down_bias: Tensor | None, activation: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """down · activation(up · x + up_bias) + down_bias; up [F, d], down [d, F]; float32.

        relu; gelu x Φ(x) by erf, gelu_tanh ½x(1 + tanh(√(2/π)(x + 0.044715x³))), quick_gelu x σ(1.702x), silu x σ(x) (arXiv 1606.08415).
        """
        ...

    def log_softmax(self, logits: Tensor) -> Tensor:
        """Over the last dimension, float32."""
        ...
