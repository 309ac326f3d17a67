"""What a model is in plain numbers: one description from the plan to native code, whose structs have these fields by the same names.

A field is added in two places: here, and with its struct in csrc/cpu (layer.h, clusters.h, embedding.h, head.h); one of Visibility also
in csrc/cuda/attention/attention.h.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

from engine_kernels.ops import Visibility


@dataclass(frozen=True)
class AttentionShape:
    """One layer's attention with at least one head.

    A bidirectional layer's sequences arrive whole in one step, and nothing is kept. relative: rows by distance per head, shared by the
    heads, or none. spans: tokens, one per head.
    """

    heads: int
    head_dim: int
    persistent: int
    visibility: Visibility
    relative: Literal["none", "per_head", "shared"] = "none"
    spans: tuple[float, ...] | None = None
    span_ramp: int = 0


@dataclass(frozen=True)
class LayerShape:
    """attention is None for a layer without heads: its attention output is the output bias alone.

    activation of the feed-forward: relu | gelu (exact, by erf) | gelu_tanh | quick_gelu (x · sigmoid(1.702 x)) | silu.
    """

    attention: AttentionShape | None
    feed_forward: int  # width, 0 = none
    activation: str
    norm_first: bool
    norm_eps: float


@dataclass(frozen=True)
class ClusterShape:
    """Token ids start .. start + size - 1, rows of `width`. entry: its own place in the first cluster's softmax (unused for cluster 0).

    tied, tied_projection: of the head, whether its rows, or its projection, are the embedding's own.
    """

    start: int
    size: int
    width: int
    projected: bool
    entry: int
    tied: bool = False
    tied_projection: bool = False


@dataclass(frozen=True)
class EmbeddingShape:
    """Rows of tokens, projected and multiplied by `scale`, with rows of the tables of positions and token types added, then a norm.

    positions, token_types: rows of these tables, 0 = none; norm_eps None = no norm.
    """

    clusters: tuple[ClusterShape, ...]
    scale: float = 1.0
    positions: int = 0
    token_types: int = 0
    norm_eps: float | None = None


@dataclass(frozen=True)
class HeadShape:
    """What reads the last hidden states: clusters of the vocabulary, a head of labels, or nothing.

    clusters_read_hidden: the clusters' entries read the hidden state, not the first cluster's projection. final_norm_eps None = no norm
    after the last layer. transform: activation of a dense layer with a norm before the clusters. labels: 0 = none, behind a dense layer
    with activation `pooler`.
    """

    clusters: tuple[ClusterShape, ...] = ()
    clusters_read_hidden: bool = False
    final_norm_eps: float | None = None
    transform: str | None = None
    transform_eps: float = 0.0
    labels: int = 0
    pooler: str | None = None


def by_name(shape: Any, kind: type[Any]) -> dict[str, Any]:
    """The fields of `kind`, one of the shapes above, with the values `shape` has for them; shapes within it likewise."""
    return {field.name: _plain(getattr(shape, field.name)) for field in fields(kind)}


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return by_name(value, type(value))
    return [_plain(part) for part in value] if isinstance(value, tuple) else value
