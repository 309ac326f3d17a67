"""The rules a spec must keep: every contradiction as a Problem, nothing raised."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from engine.errors import Problem
from engine.spec.types import (
    FORMAT_VERSION,
    Absolute,
    AttentionSpec,
    Labels,
    LayerSpec,
    SharedTable,
    Sinusoid,
    Table,
    Vocabulary,
)

if TYPE_CHECKING:
    from engine.spec.model import ModelSpec

MAX_WINDOW = 1 << 24  # a longer ring of keys is a damaged file, not a model


def spec_problems(spec: ModelSpec) -> Iterator[Problem]:
    """Yield each contradiction of `spec` as where, expected, found."""
    if spec.version != FORMAT_VERSION:
        yield Problem("spec.version", f"{FORMAT_VERSION} (the format this Headcount reads)", str(spec.version))
    yield from _positive("spec", hidden=spec.hidden, vocab=spec.vocab)
    if not spec.layers:
        yield Problem("spec.layers", "at least one layer", "none")
    for index, layer in enumerate(spec.layers):
        yield from _layer_problems(f"layers.{index}", layer, spec)
    if len({layer.attention.position for layer in spec.layers}) > 1:
        yield Problem("spec.layers", "one kind of position for all layers", "several")
    yield from _embedding_problems(spec)
    if isinstance(spec.head, Vocabulary):
        yield from _vocabulary_problems(spec, spec.head)
    yield from _task_problems(spec)


def _task_problems(spec: ModelSpec) -> Iterator[Problem]:
    head = spec.head
    kinds = {"causal_lm": Vocabulary, "masked_lm": Vocabulary, "token_classification": Labels, "sequence_classification": Labels}
    kind = kinds.get(spec.task, type(None))
    if not isinstance(head, kind):
        expected = "none" if spec.task == "hidden" else kind.__name__
        yield Problem("spec.head", f"{expected} for task {spec.task}", type(head).__name__)
    elif isinstance(head, Labels):
        yield from _positive("head", labels=head.labels)
        if head.pooled != (spec.task == "sequence_classification"):
            yield Problem("head.pooled", f"{not head.pooled} for task {spec.task}", str(head.pooled))
        if head.pooler is not None and not head.pooled:
            yield Problem("head.pooler", "none where every token is classified", head.pooler)


def _positive(where: str, **values: int) -> Iterator[Problem]:
    for name, value in values.items():
        if value < 1:
            yield Problem(f"{where}.{name}", "a positive integer", str(value))


def _layer_problems(where: str, layer: LayerSpec, spec: ModelSpec) -> Iterator[Problem]:
    yield from _attention_problems(f"{where}.attention", layer.attention, spec)
    if layer.feed_forward is not None:
        yield from _positive(f"{where}.feed_forward", width=layer.feed_forward.width)
    if not 0 < layer.norm_eps < 1:
        yield Problem(f"{where}.norm_eps", "a number between 0 and 1", str(layer.norm_eps))
    if layer.norm_offset not in (0.0, 1.0):
        yield Problem(f"{where}.norm_offset", "0 or 1", str(layer.norm_offset))


def _attention_problems(where: str, a: AttentionSpec, spec: ModelSpec) -> Iterator[Problem]:
    yield from _positive(where, source_heads=a.source_heads, head_dim=a.head_dim)
    if list(a.kept) != sorted(set(a.kept)) or any(not 0 <= head < a.source_heads for head in a.kept):
        yield Problem(f"{where}.kept", f"ascending head numbers from 0 to {a.source_heads - 1}", str(list(a.kept)))
    if len(a.kv_of) != a.heads or (a.kv_of and sorted(set(a.kv_of)) != list(range(len(set(a.kv_of))))):
        yield Problem(f"{where}.kv_of", f"{a.heads} key/value head numbers with none unused", str(list(a.kv_of)))
    if a.persistent < 0:
        yield Problem(f"{where}.persistent", "0 or more vectors", str(a.persistent))
    if a.window is not None and not 1 <= a.window <= MAX_WINDOW:
        yield Problem(f"{where}.window", f"1 to {MAX_WINDOW} keys", str(a.window))
    if a.segment is not None and not 1 <= a.segment <= MAX_WINDOW:
        yield Problem(f"{where}.segment", f"1 to {MAX_WINDOW} tokens", str(a.segment))
    if a.segment is not None and not a.sees_self:
        yield Problem(f"{where}.segment", "none where a token does not see itself", str(a.segment))
    if a.window is None and (a.segment is not None or isinstance(a.position, (Table, Sinusoid, SharedTable))):
        yield Problem(f"{where}.window", "a number of keys (segments and relative positions need one)", "none")
    if isinstance(a.position, (Table, SharedTable)) and a.reach is not None and a.reach > a.position.rows:
        yield Problem(f"{where}.window", f"at most {a.position.rows} keys, the rows of the position table", str(a.reach))
    if isinstance(a.position, Sinusoid) and (spec.hidden % 2 or (a.position.clamp is not None and a.position.clamp < 1)):
        yield Problem(f"{where}.position", "an even hidden size and a positive clamp", f"{spec.hidden}, {a.position.clamp}")
    if isinstance(a.position, Absolute) and not spec.embedding.positions:
        yield Problem(f"{where}.position", "positions in the embedding where attention knows none", "none")
    if not (math.isfinite(a.score_scale) and a.score_scale > 0):
        yield Problem(f"{where}.score_scale", "a positive number", str(a.score_scale))
    if a.causal and not a.sees_self and a.start == "empty":
        yield Problem(f"{where}.start", "attended_zeros where a token does not see itself (the first would see nothing)", "empty")
    yield from _span_problems(where, a)


def _span_problems(where: str, a: AttentionSpec) -> Iterator[Problem]:
    if (a.spans is None) != (a.span_ramp is None):
        yield Problem(f"{where}.span_ramp", "given exactly when spans are", str(a.span_ramp))
    if a.spans is None:
        return
    if a.window is None:
        yield Problem(f"{where}.window", "a number of keys (spans need one)", "none")
    if len(a.spans) != a.heads:
        yield Problem(f"{where}.spans", f"{a.heads} numbers, one per kept head", str(len(a.spans)))
    if any(not math.isfinite(span) for span in a.spans):
        yield Problem(f"{where}.spans", "finite numbers", str(list(a.spans)))
    if a.span_ramp is not None and a.span_ramp < 1:
        yield Problem(f"{where}.span_ramp", "1 or more tokens", str(a.span_ramp))


def _embedding_problems(spec: ModelSpec) -> Iterator[Problem]:
    e = spec.embedding
    for index, c in enumerate(e.clusters):
        yield from _positive(f"embedding.{index}", size=c.size, width=c.width)
        if not c.projected and c.width != spec.hidden:
            yield Problem(f"embedding.{index}.width", f"{spec.hidden}, the hidden size, where nothing projects", str(c.width))
    for name, value in (("positions", e.positions), ("position_offset", e.position_offset), ("token_types", e.token_types)):
        if value < 0:
            yield Problem(f"embedding.{name}", "0 or more", str(value))
    if e.positions and e.position_offset >= e.positions:
        yield Problem("embedding.position_offset", f"less than the {e.positions} positions", str(e.position_offset))
    if e.position_pad is not None and not (0 <= e.position_pad < spec.vocab and e.position_offset >= 1):
        found = f"{e.position_pad} with position_offset {e.position_offset}"
        yield Problem("embedding.position_pad", f"a token id from 0 to {spec.vocab - 1}, and a position_offset of at least 1", found)
    if sum(c.size for c in e.clusters) != spec.vocab:
        yield Problem("embedding", f"clusters that add up to {spec.vocab} tokens", str(sum(c.size for c in e.clusters)))


def _vocabulary_problems(spec: ModelSpec, head: Vocabulary) -> Iterator[Problem]:
    if not head.clusters:
        yield Problem("head.clusters", "at least one cluster", "none")
        return
    for index, c in enumerate(head.clusters):
        yield from _positive(f"head.{index}", size=c.size, width=c.width)
        if not c.projected and c.width != spec.hidden:
            yield Problem(f"head.{index}.width", f"{spec.hidden}, the hidden size, where nothing projects", str(c.width))
    if sum(c.size for c in head.clusters) != spec.vocab:
        yield Problem("head", f"clusters that add up to {spec.vocab} tokens", str(sum(c.size for c in head.clusters)))
    else:
        yield from _tie_problems(spec, head)


def _tie_problems(spec: ModelSpec, head: Vocabulary) -> Iterator[Problem]:
    inputs = spec.embedding.clusters
    if sum(c.size for c in inputs) != spec.vocab or min([c.size for c in inputs] + [c.size for c in head.clusters]) < 1:
        return
    for index, c in enumerate(head.clusters):
        if c.tied:
            name, start, stop = spec.tied_source(index)
            source = inputs[int(name.split(".")[1])]
            if stop > source.size or source.width != c.width:
                yield Problem(
                    f"head.{index}.tied", f"{c.size} rows of {c.width} inside one embedding cluster", f"{name} rows {start}..{stop}"
                )
        if c.tied_projection:
            fits = index < len(inputs) and inputs[index].projected and inputs[index].width == c.width
            if not (c.projected and fits):
                yield Problem(f"head.{index}.tied_projection", f"a projection of embedding {index} to width {c.width}", "none that fits")
