"""Spec → plan: the stack as plain integers, compiled once at load; the only description of a model a backend sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engine.errors import Problem, Unsupported
from engine.spec import AttentionSpec, LayerSpec, ModelSpec, SharedTable, Sinusoid, Table, Vocabulary


@dataclass(frozen=True)
class AttentionPlan:
    """One layer's attention with at least one head.

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


@dataclass(frozen=True)
class LayerPlan:
    """attention is None for a layer without heads: its attention output is the output bias alone."""

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
class Stack:
    """The whole model as integers: input clusters, layers, output clusters."""

    hidden: int
    vocab: int
    layers: tuple[LayerPlan, ...]
    inputs: tuple[ClusterPlan, ...]
    outputs: tuple[ClusterPlan, ...]
    clusters_read_hidden: bool  # cluster entries read the hidden state, not the first cluster's projection
    final_norm_eps: float | None  # None = no norm after the last layer


def compile_stack(spec: ModelSpec) -> Stack:
    """The plan of a spec; raises Unsupported naming every variant that nothing implements yet."""
    problems = list(_unsupported(spec))
    if problems or not isinstance(spec.head, Vocabulary):
        raise Unsupported(problems, hint="this Headcount runs causal language models; see the support table in README.md")
    return Stack(
        hidden=spec.hidden,
        vocab=spec.vocab,
        layers=tuple(_layer(layer) for layer in spec.layers),
        inputs=_clusters([(c.size, c.width, c.projected) for c in spec.embedding.clusters], "ascending"),
        outputs=_clusters([(c.size, c.width, c.projected) for c in spec.head.clusters], spec.head.order),
        clusters_read_hidden=spec.head.cluster_input == "hidden",
        final_norm_eps=spec.layers[-1].norm_eps if spec.final_norm else None,
    )


def _layer(layer: LayerSpec) -> LayerPlan:
    f = layer.feed_forward
    return LayerPlan(
        attention=_attention(layer.attention) if layer.attention.heads else None,
        feed_forward=f.width if f else 0,
        activation=f.activation if f else "relu",
        norm_first=layer.norm_first,
        norm_eps=layer.norm_eps,
    )


def _attention(a: AttentionSpec) -> AttentionPlan:
    assert a.window is not None and a.reach is not None  # refused by _unsupported otherwise
    return AttentionPlan(
        heads=a.heads,
        head_dim=a.head_dim,
        persistent=a.persistent,
        window=a.window,
        segment=a.segment or 0,
        reach=a.reach,
        first_distance=0 if a.sees_self else 1,
        attended_zeros=a.start == "attended_zeros",
        relative="per_head" if a.relative else "shared" if isinstance(a.position, SharedTable) else "none",
        biased=a.relative,
        spans=a.spans,
        span_ramp=a.span_ramp or 0,
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

    if spec.task != "causal_lm":
        refuse("task", spec.task)
    if spec.embedding.positions or spec.embedding.token_types or spec.embedding.norm:
        refuse("embedding", "positions, token types or a norm on the embedding")
    for index, layer in enumerate(spec.layers):
        a, where = layer.attention, f"layers.{index}"
        if a.position is not None and not isinstance(a.position, (Table, Sinusoid, SharedTable)):
            refuse(f"{where}.attention.position", type(a.position).__name__)
        if not a.causal:
            refuse(f"{where}.attention.causal", "bidirectional attention")
        if a.causal and a.window is None:
            refuse(f"{where}.attention.window", "an unlimited window")
        if a.kv_of != tuple(range(a.heads)):
            refuse(f"{where}.attention.kv_of", "grouped key/value heads")
        if layer.norm != "layer":
            refuse(f"{where}.norm", f"{layer.norm} norm")
        if layer.feed_forward is not None and (layer.feed_forward.gated or layer.feed_forward.activation != "relu"):
            refuse(f"{where}.feed_forward", f"{layer.feed_forward.activation}, gated={layer.feed_forward.gated}")
    return problems
