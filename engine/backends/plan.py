"""Spec → plan: the stack as plain integers, compiled once at load; the only description of a model a backend sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engine.errors import Problem, Unsupported
from engine.spec import Absolute, AttentionSpec, Embedding, Labels, LayerSpec, ModelSpec, SharedTable, Sinusoid, Table, Vocabulary


@dataclass(frozen=True)
class AttentionPlan:
    """One layer's attention with at least one head.

    Bidirectional (causal false): every row sees every row of its sequence, which arrives whole in one step; nothing is kept, and window,
    segment and reach are 0. Else
    A token at position p sees the keys at distances first_distance .. first_distance + n - 1, where n = window, plus p mod segment where
    segment > 0; never more than reach. Distances beyond p exist (as the projection of zero rows) if attended_zeros, else they do not.
    relative: rows by distance per head, shared by the heads, or none; biased: content and position biases are added to the query.
    """

    heads: int
    head_dim: int
    persistent: int
    window: int
    segment: int
    reach: int
    first_distance: Literal[0, 1]
    attended_zeros: bool
    relative: Literal["none", "per_head", "shared"]
    biased: bool
    spans: tuple[float, ...] | None
    span_ramp: int
    causal: bool = True


@dataclass(frozen=True)
class LayerPlan:
    """attention is None for a layer without heads: its attention output is the output bias alone.

    activation of the feed-forward: relu | gelu (exact, by erf) | gelu_tanh | quick_gelu (x · sigmoid(1.702 x)) | silu.
    """

    attention: AttentionPlan | None
    feed_forward: int  # width, 0 = none
    activation: str
    norm_first: bool
    norm_eps: float


@dataclass(frozen=True)
class ClusterPlan:
    """Token ids start .. start + size - 1. `entry` is the cluster's own place in the first cluster's softmax (unused for cluster 0)."""

    start: int
    size: int
    width: int
    projected: bool
    entry: int


@dataclass(frozen=True)
class EmbeddingPlan:
    """What is added to a token's row, then a norm. positions, token_types: rows of the tables, 0 = none; norm_eps None = no norm.

    A token at place p reads row p + offset of the positions; one whose id is `pad` is no place and reads row offset - 1.
    """

    positions: int = 0
    offset: int = 0
    pad: int | None = None
    token_types: int = 0
    norm_eps: float | None = None


@dataclass(frozen=True)
class LabelsPlan:
    """A head of `labels` classes for every row, or if pooled for a sequence's first row, through a dense layer with activation `pooler`."""

    labels: int
    pooled: bool
    pooler: str | None


@dataclass(frozen=True)
class Stack:
    """The whole model as integers: embedding, layers, and what reads the last hidden states: output clusters, labels or nothing."""

    hidden: int
    vocab: int
    layers: tuple[LayerPlan, ...]
    inputs: tuple[ClusterPlan, ...]
    outputs: tuple[ClusterPlan, ...]
    clusters_read_hidden: bool  # cluster entries read the hidden state, not the first cluster's projection
    final_norm_eps: float | None  # None = no norm after the last layer
    embedding: EmbeddingPlan = EmbeddingPlan()
    labels: LabelsPlan | None = None
    transform: str | None = None  # activation of the dense layer and norm before the output clusters
    transform_eps: float = 0.0
    causal: bool = True

    @property
    def most_rows(self) -> int | None:
        """Tokens a sequence may have: as many as there are positions; None = any number."""
        return self.embedding.positions - self.embedding.offset if self.embedding.positions else None

    def head_dims(self) -> tuple[int, ...]:
        """The sizes of its heads, each once."""
        return tuple(dict.fromkeys(layer.attention.head_dim for layer in self.layers if layer.attention is not None))


def compile_stack(spec: ModelSpec) -> Stack:
    """The plan of a spec; raises Unsupported naming every variant that nothing implements yet."""
    problems = list(_unsupported(spec))
    if problems:
        raise Unsupported(problems, hint="see the support table in README.md for what this Headcount runs")
    head = spec.head if isinstance(spec.head, Vocabulary) else None
    labels = spec.head if isinstance(spec.head, Labels) else None
    embedding = _embedding(spec.embedding, spec.layers[0].norm_eps)
    reach = embedding.positions - embedding.offset
    return Stack(
        hidden=spec.hidden,
        vocab=spec.vocab,
        layers=tuple(_layer(layer, reach) for layer in spec.layers),
        inputs=_clusters([(c.size, c.width, c.projected) for c in spec.embedding.clusters], "ascending"),
        outputs=_clusters([(c.size, c.width, c.projected) for c in head.clusters], head.order) if head else (),
        clusters_read_hidden=head is not None and head.cluster_input == "hidden",
        final_norm_eps=spec.layers[-1].norm_eps if spec.final_norm else None,
        embedding=embedding,
        labels=LabelsPlan(labels.labels, labels.pooled, labels.pooler) if labels else None,
        transform=head.transform if head else None,
        transform_eps=spec.layers[-1].norm_eps,
        causal=spec.layers[0].attention.causal,
    )


def _embedding(e: Embedding, norm_eps: float) -> EmbeddingPlan:
    return EmbeddingPlan(e.positions, e.position_offset, e.position_pad, e.token_types, norm_eps if e.norm else None)


def _layer(layer: LayerSpec, positions: int) -> LayerPlan:
    f = layer.feed_forward
    return LayerPlan(
        attention=_attention(layer.attention, positions) if layer.attention.heads else None,
        feed_forward=f.width if f else 0,
        activation=f.activation if f else "relu",
        norm_first=layer.norm_first,
        norm_eps=layer.norm_eps,
    )


def _attention(a: AttentionSpec, positions: int) -> AttentionPlan:
    everything = positions if a.causal else 0  # a sequence ends where its positions do
    return AttentionPlan(
        heads=a.heads,
        head_dim=a.head_dim,
        persistent=a.persistent,
        window=everything if a.window is None else a.window,
        segment=a.segment or 0,
        reach=everything if a.reach is None else a.reach,
        first_distance=0 if a.sees_self else 1,
        attended_zeros=a.start == "attended_zeros",
        relative="per_head" if a.relative else "shared" if isinstance(a.position, SharedTable) else "none",
        biased=a.relative,
        spans=a.spans,
        span_ramp=a.span_ramp or 0,
        causal=a.causal,
    )


def _clusters(clusters: list[tuple[int, int, bool]], order: str) -> tuple[ClusterPlan, ...]:
    """Cluster c ≥ 1 stands in the first softmax at n0 + c - 1 when ascending, at n0 + tails - c when descending."""
    plans, start, tails = [], 0, len(clusters) - 1
    for index, (size, width, projected) in enumerate(clusters):
        entry = clusters[0][0] + (index - 1 if order == "ascending" else tails - index)
        plans.append(ClusterPlan(start, size, width, projected, entry))
        start += size
    return tuple(plans)


def _unsupported(spec: ModelSpec) -> list[Problem]:
    problems = []

    def refuse(where: str, found: str) -> None:
        problems.append(Problem(where, "a variant this version runs", found))

    if len({layer.attention.causal for layer in spec.layers}) > 1:
        refuse("layers", "causal and bidirectional attention in one model")
    for index, layer in enumerate(spec.layers):
        a, where = layer.attention, f"layers.{index}"
        if a.position is not None and not isinstance(a.position, (Table, Sinusoid, SharedTable, Absolute)):
            refuse(f"{where}.attention.position", type(a.position).__name__)
        if a.causal and a.window is None and not spec.embedding.positions:
            refuse(f"{where}.attention.window", "an unlimited window without positions in the embedding")
        whole = a.window is None and not a.persistent and a.spans is None and a.sees_self and a.start == "empty"
        if not a.causal and not whole:
            refuse(f"{where}.attention.causal", "bidirectional attention with a window, spans, persistent vectors or rows before the start")
        if a.kv_of != tuple(range(a.heads)):
            refuse(f"{where}.attention.kv_of", "grouped key/value heads")
        if layer.norm != "layer":
            refuse(f"{where}.norm", f"{layer.norm} norm")
        if layer.feed_forward is not None and layer.feed_forward.gated:
            refuse(f"{where}.feed_forward", f"a gated {layer.feed_forward.activation}")
    return problems
