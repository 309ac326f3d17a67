"""The frozen description of a head-pruned Transformer: one type that every converter ends in and every backend starts from.

Heads are a tuple of kept head NUMBERS of the source model per layer, never a count shared by the model. A variant the types can say and
nothing implements yet is refused at load by its name (`model/plan.py`), never left out of the types.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engine.spec.fields import variant

FORMAT_VERSION = 1
Task = Literal["causal_lm", "masked_lm", "token_classification", "sequence_classification", "hidden"]


@variant
@dataclass(frozen=True)
class Table:
    """Learned rows by distance, projected per layer: r = table · relativeᵀ, with content and position biases (arXiv 2110.03252)."""

    rows: int


@variant
@dataclass(frozen=True)
class Sinusoid:
    """Sine and cosine halves by distance, projected per layer, with content and position biases (arXiv 1901.02860)."""

    clamp: int | None = None  # distances beyond it are treated as it


@variant
@dataclass(frozen=True)
class SharedTable:
    """Learned rows by distance used as they are by every head and layer (arXiv 1905.07799)."""

    rows: int


@variant
@dataclass(frozen=True)
class Absolute:
    """Positions are added to the embedding; attention itself knows none."""


@variant
@dataclass(frozen=True)
class Rotary:
    """Rotation of query and key pairs by position."""

    base: float = 10000.0
    width: int | None = None  # rotated dimensions of a head, all when None


@variant
@dataclass(frozen=True)
class Alibi:
    """A slope per head times the distance, added to the score."""


Position = Table | Sinusoid | SharedTable | Absolute | Rotary | Alibi
Activation = Literal["relu", "gelu", "gelu_tanh", "quick_gelu", "silu"]  # gelu is exact (erf), gelu_tanh its usual approximation

Pooler = Literal["tanh", "relu", "gelu"]  # of the dense layer before the labels of a whole sequence


@dataclass(frozen=True)
class AttentionSpec:
    """One layer's attention after pruning.

    kept: numbers of the kept heads in the source model, ascending; empty is legal.
    kv_of: for each kept head its key/value head.
    window: keys visible to a token (itself included if sees_self), None = all; with `segment`, to the first token of a
        segment of that many tokens, each later token of it seeing one more.
    start: what stands before the first token: rows of zeros that are projected and attended, or nothing.
    spans: per kept head the adaptive span in tokens (z · maximum), its ramp `span_ramp` tokens long.
    """

    source_heads: int
    kept: tuple[int, ...]
    kv_of: tuple[int, ...]
    head_dim: int
    position: Position | None
    persistent: int
    causal: bool
    sees_self: bool
    window: int | None
    segment: int | None
    start: Literal["attended_zeros", "empty"]
    spans: tuple[float, ...] | None
    span_ramp: int | None
    bias: bool  # on query, key, value and the relative projection
    output_bias: bool
    scaled: bool  # a head_scale [heads] multiplies each head's output
    score_scale: float = 1.0  # a factor on the scores besides 1 / √head_dim

    @property
    def heads(self) -> int:
        return len(self.kept)

    @property
    def kv_heads(self) -> int:
        return max(self.kv_of) + 1 if self.kv_of else 0

    @property
    def reach(self) -> int | None:
        """The most keys any token sees: the window, and with segments the tokens of its own segment before it."""
        return None if self.window is None else self.window + ((self.segment or 1) - 1)

    @property
    def relative(self) -> bool:
        """Whether the layer projects distances itself and holds content and position biases."""
        return isinstance(self.position, (Table, Sinusoid))


@dataclass(frozen=True)
class FeedForward:
    """down(activation(up(x))), or down(activation(gate(x)) · up(x)) when gated."""

    width: int
    activation: Activation
    gated: bool
    bias: bool


@dataclass(frozen=True)
class LayerSpec:
    """Attention and an optional feed-forward, each with a residual and a norm before (norm_first) or after it."""

    attention: AttentionSpec
    feed_forward: FeedForward | None
    norm: Literal["layer", "rms"]
    norm_first: bool
    norm_eps: float
    norm_offset: float  # gain = norm_offset + stored weight: 1 for aiha-lab, else 0


@dataclass(frozen=True)
class Cluster:
    """A run of `size` consecutive token ids with rows of `width` numbers, projected to the hidden size or used as they are."""

    size: int
    width: int
    projected: bool


@dataclass(frozen=True)
class Embedding:
    """Input side: row of the token's cluster, projected, times `scale`; encoders add positions, token types and a norm.

    A token at place p of its sequence reads row p + position_offset of `positions`. position_pad: tokens of that id do not count as a place
    and read row position_offset - 1 (XLM-R).
    """

    clusters: tuple[Cluster, ...]
    scale: float
    positions: int = 0
    position_offset: int = 0
    token_types: int = 0
    norm: bool = False
    position_pad: int | None = None

    @property
    def most_tokens(self) -> int | None:
        """Tokens a sequence may have, as many as there are positions; None = any number."""
        return self.positions - self.position_offset if self.positions else None


@dataclass(frozen=True)
class OutputCluster:
    """A cluster of the output side; `tied` rows and `tied_projection` are the embedding's own tensors, not stored again."""

    size: int
    width: int
    projected: bool
    tied: bool
    tied_projection: bool


@variant
@dataclass(frozen=True)
class Vocabulary:
    """Softmax over the vocabulary: plain with one cluster, adaptive with more.

    The first cluster's softmax also holds one entry per further cluster, ascending (aiha-lab) or descending (FAIR, Transformer-XL);
    those entries read the raw hidden state (aiha-lab) or the first cluster's projection of it. transform: hidden states first go through a
    dense layer, this activation and a norm (masked language models).
    """

    clusters: tuple[OutputCluster, ...]
    order: Literal["ascending", "descending"]
    cluster_input: Literal["hidden", "projected"]
    bias: bool = True
    transform: Activation | None = None


@variant
@dataclass(frozen=True)
class Labels:
    """Task head of an encoder: `labels` classes per token, or of the first token, through a dense layer with activation `pooler`."""

    labels: int
    pooled: bool
    pooler: Pooler | None = None
