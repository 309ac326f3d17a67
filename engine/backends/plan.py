"""Spec → plan: the stack as plain integers, compiled once at load; the only description of a model a backend sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.errors import Problem, Unsupported
from engine.spec import (
    Absolute,
    AttentionSpec,
    Cluster,
    Embedding,
    Labels,
    LayerSpec,
    ModelSpec,
    OutputCluster,
    SharedTable,
    Sinusoid,
    Table,
)
from engine_kernels.ops import Visibility
from engine_kernels.shapes import AttentionShape, ClusterShape, EmbeddingShape, HeadShape, LayerShape


@dataclass(frozen=True)
class EmbeddingPlan(EmbeddingShape):
    """A token at place p reads row p + offset of the positions; one whose id is `pad` is no place and reads row offset - 1."""

    offset: int = 0
    pad: int | None = None


@dataclass(frozen=True)
class HeadPlan(HeadShape):
    """pooled: labels are of a sequence, by its first row, and not of every row."""

    pooled: bool = False

    @property
    def has_logits(self) -> bool:
        """Whether the model ends in logits, of words or of labels, and not in hidden states."""
        return bool(self.clusters or self.labels)


@dataclass(frozen=True)
class Stack:
    """The whole model as integers: what makes rows of tokens, layers, what reads the last hidden states."""

    hidden: int
    vocab: int
    layers: tuple[LayerShape, ...]
    embedding: EmbeddingPlan
    head: HeadPlan
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
    embedding = _embedding(spec.embedding, spec.layers[0].norm_eps)
    reach = embedding.positions - embedding.offset
    return Stack(
        hidden=spec.hidden,
        vocab=spec.vocab,
        layers=tuple(_layer(layer, reach) for layer in spec.layers),
        embedding=embedding,
        head=_head(spec),
        causal=spec.layers[0].attention.causal,
    )


def _embedding(e: Embedding, norm_eps: float) -> EmbeddingPlan:
    return EmbeddingPlan(
        clusters=_clusters(e.clusters, "ascending"),
        scale=e.scale,
        positions=e.positions,
        token_types=e.token_types,
        norm_eps=norm_eps if e.norm else None,
        offset=e.position_offset,
        pad=e.position_pad,
    )


def _head(spec: ModelSpec) -> HeadPlan:
    last = spec.layers[-1].norm_eps
    final_norm_eps = last if spec.final_norm else None
    if isinstance(spec.head, Labels):
        labels = spec.head
        return HeadPlan(final_norm_eps=final_norm_eps, labels=labels.labels, pooler=labels.pooler, pooled=labels.pooled)
    if spec.head is None:
        return HeadPlan(final_norm_eps=final_norm_eps)
    return HeadPlan(
        clusters=_clusters(spec.head.clusters, spec.head.order),
        clusters_read_hidden=spec.head.cluster_input == "hidden",
        final_norm_eps=final_norm_eps,
        transform=spec.head.transform,
        transform_eps=last,
    )


def _layer(layer: LayerSpec, positions: int) -> LayerShape:
    f = layer.feed_forward
    return LayerShape(
        attention=_attention(layer.attention, positions) if layer.attention.heads else None,
        feed_forward=f.width if f else 0,
        activation=f.activation if f else "relu",
        norm_first=layer.norm_first,
        norm_eps=layer.norm_eps,
    )


def _attention(a: AttentionSpec, positions: int) -> AttentionShape:
    everything = positions if a.causal else 0  # a sequence ends where its positions do
    return AttentionShape(
        heads=a.heads,
        head_dim=a.head_dim,
        persistent=a.persistent,
        visibility=Visibility(
            window=everything if a.window is None else a.window,
            segment=a.segment or 0,
            reach=everything if a.reach is None else a.reach,
            first_distance=0 if a.sees_self else 1,
            attended_zeros=a.start == "attended_zeros",
            bidirectional=not a.causal,
        ),
        relative="per_head" if a.relative else "shared" if isinstance(a.position, SharedTable) else "none",
        spans=a.spans,
        span_ramp=a.span_ramp or 0,
    )


def _clusters(clusters: Sequence[Cluster | OutputCluster], order: str) -> tuple[ClusterShape, ...]:
    """Cluster c ≥ 1 stands in the first softmax at n0 + c - 1 when ascending, at n0 + tails - c when descending."""
    shapes, start, tails = [], 0, len(clusters) - 1
    for index, c in enumerate(clusters):
        entry = clusters[0].size + (index - 1 if order == "ascending" else tails - index)
        ties = (c.tied, c.tied_projection) if isinstance(c, OutputCluster) else (False, False)
        shapes.append(ClusterShape(start, c.size, c.width, c.projected, entry, *ties))
        start += c.size
    return tuple(shapes)


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
        plain = a.window is None and not a.persistent and a.spans is None and a.sees_self and a.start == "empty"
        if not a.causal and not plain:
            refuse(f"{where}.attention.causal", "bidirectional attention with a window, spans, persistent vectors or rows before the start")
        if a.kv_of != tuple(range(a.heads)):
            refuse(f"{where}.attention.kv_of", "grouped key/value heads")
        if layer.norm != "layer":
            refuse(f"{where}.norm", f"{layer.norm} norm")
        if layer.feed_forward is not None and layer.feed_forward.gated:
            refuse(f"{where}.feed_forward", f"a gated {layer.feed_forward.activation}")
    return problems
