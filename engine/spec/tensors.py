"""Every tensor a spec implies: name → shape, in the order of execution."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from engine.spec.types import Labels, LayerSpec, SharedTable, Sinusoid, Table, Vocabulary

if TYPE_CHECKING:
    from engine.spec.model import ModelSpec

Shapes = dict[str, tuple[int, ...]]


def tensors_of(spec: ModelSpec) -> Shapes:
    """What a checkpoint of `spec` must hold, and no other."""
    shapes: Shapes = dict(_embedding_tensors(spec))
    shapes.update(_position_tensors(spec))
    for index, layer in enumerate(spec.layers):
        shapes.update((f"layers.{index}.{name}", shape) for name, shape in _layer_tensors(layer, spec.hidden))
    if spec.final_norm and spec.layers:
        shapes.update(_norm_tensors("final_norm", spec.layers[-1], spec.hidden))
    shapes.update(_head_tensors(spec))
    return shapes


def _embedding_tensors(spec: ModelSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    e = spec.embedding
    for index, c in enumerate(e.clusters):
        yield f"embedding.{index}", (c.size, c.width)
        if c.projected:
            yield f"embedding.{index}.projection", (spec.hidden, c.width)
    if e.positions:
        yield "embedding.positions", (e.positions, spec.hidden)
    if e.token_types:
        yield "embedding.token_types", (e.token_types, spec.hidden)
    if e.norm:
        yield "embedding.norm", (spec.hidden,)
        yield "embedding.norm_bias", (spec.hidden,)


def _position_tensors(spec: ModelSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Row i of a table is distance i where a token sees itself, else distance i + 1."""
    if not spec.layers:
        return
    a = spec.layers[0].attention
    if isinstance(a.position, Table):
        yield "position.table", (a.position.rows, spec.hidden)
    elif isinstance(a.position, SharedTable):
        yield "position.table", (a.position.rows, a.head_dim)
    elif isinstance(a.position, Sinusoid):
        yield "position.frequencies", (spec.hidden // 2,)


def _layer_tensors(layer: LayerSpec, hidden: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    a = layer.attention
    yield from _norm_tensors("attention_norm", layer, hidden)
    if a.heads:
        rows, kv_rows = a.heads * a.head_dim, a.kv_heads * a.head_dim
        sizes = {"query": rows, "key": kv_rows, "value": kv_rows} | ({"relative": rows} if a.relative else {})
        for name, size in sizes.items():
            yield f"attention.{name}", (size, hidden)
            if a.bias:
                yield f"attention.{name}_bias", (size,)
        if a.relative:
            yield "attention.content_bias", (a.heads, a.head_dim)
            yield "attention.position_bias", (a.heads, a.head_dim)
        if a.persistent:
            yield "attention.persistent_keys", (a.heads, a.persistent, a.head_dim)
            yield "attention.persistent_values", (a.heads, a.persistent, a.head_dim)
        if a.scaled:
            yield "attention.head_scale", (a.heads,)
        yield "attention.output", (hidden, rows)
    if a.output_bias:
        yield "attention.output_bias", (hidden,)
    f = layer.feed_forward
    if f is not None:
        yield from _norm_tensors("feed_forward_norm", layer, hidden)
        for name in ("gate", "up") if f.gated else ("up",):
            yield f"feed_forward.{name}", (f.width, hidden)
            if f.bias:
                yield f"feed_forward.{name}_bias", (f.width,)
        yield "feed_forward.down", (hidden, f.width)
        if f.bias:
            yield "feed_forward.down_bias", (hidden,)


def _norm_tensors(name: str, layer: LayerSpec, hidden: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield name, (hidden,)
    if layer.norm == "layer":
        yield f"{name}_bias", (hidden,)


def _head_tensors(spec: ModelSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    """A projection is [hidden, width] and used as hidden · projection, the embedding's layout, so that tying needs no transpose."""
    head = spec.head
    if isinstance(head, Vocabulary):
        if head.transform is not None:
            yield "head.transform", (spec.hidden, spec.hidden)
            for name in ("head.transform_bias", "head.transform_norm", "head.transform_norm_bias"):
                yield name, (spec.hidden,)
        for index, c in enumerate(head.clusters):
            if not c.tied:
                yield f"head.{index}", (c.size, c.width)
            if head.bias:
                yield f"head.{index}.bias", (c.size,)
            if c.projected and not c.tied_projection:
                yield f"head.{index}.projection", (spec.hidden, c.width)
        if tails := len(head.clusters) - 1:
            yield "head.clusters", (tails, spec.hidden if head.cluster_input == "hidden" else head.clusters[0].width)
            if head.bias:
                yield "head.clusters_bias", (tails,)
    elif isinstance(head, Labels):
        if head.pooler is not None:
            yield "head.pooler", (spec.hidden, spec.hidden)
            yield "head.pooler_bias", (spec.hidden,)
        yield "head.labels", (head.labels, spec.hidden)
        yield "head.labels_bias", (head.labels,)
