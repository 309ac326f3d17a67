"""BERT (arXiv 1810.04805), RoBERTa and XLM-R (1907.11692, 1911.02116), ELECTRA (2003.10555), DistilBERT (1910.01108) → Checkpoint.

h = norm(word + position + token type); per layer h = norm(h + attention), h = norm(h + feed-forward); no mask but padding, no final norm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from engine.checkpoint import Checkpoint
from engine.checkpoint.side_files import SideFiles
from engine.formats.base import Settings, SourceTensors
from engine.formats.hugging_face.architecture import Architecture, Kept
from engine.formats.hugging_face.family import Family
from engine.formats.hugging_face.heads import Heads, read_heads
from engine.formats.hugging_face.keys import (
    CAUSAL,
    CHANGES,
    HARMLESS,
    HONOURED,
    KEY_HEADS,
    NORM_FIRST,
    SECOND_NAMES,
    as_many_as,
    as_wide_as,
    none_of,
    read_activation,
)
from engine.formats.hugging_face.tasks import ENDINGS, Weights, read_head, read_task
from engine.spec import Absolute, Activation, AttentionSpec, Cluster, Embedding, FeedForward, LayerSpec, ModelSpec, Task


def encoder(classes: str, family: Family, tokenizer: Callable[[SideFiles, Mapping[str, Any]], str | None]) -> Architecture:
    """The row of an encoder whose tensors and settings are called as `family` says."""
    return Architecture(
        classes=classes,
        tasks=ENDINGS,
        recognised_by=".layer.0.attention.",
        read_task=partial(read_task, family),
        read=partial(read_encoder, family),
        write=partial(write_encoder, family),
        tokenizer=tokenizer,
        honoured=(*HONOURED, *family.settings.values()),
        harmless=HARMLESS,
        changes_the_computation={
            **CHANGES,
            **dict.fromkeys(NORM_FIRST, none_of("norms stand behind the sums of this architecture")),
            **dict.fromkeys(CAUSAL, none_of("every token sees every other in this architecture")),
            "embedding_size": as_wide_as(family.settings["hidden"]),
            **dict.fromkeys(KEY_HEADS, as_many_as(family.settings["heads"])),
        },
        second_names=SECOND_NAMES if family.settings["hidden"] == "dim" else (),
        prefix=family.prefix,
        layers=family.layers,
    )


def read_encoder(family: Family, task: Task, source: SourceTensors, settings: Settings, notes: list[str]) -> tuple[Checkpoint, Kept]:
    """The whole model; problems of tensors and settings are collected in both."""
    prefix = f"{family.prefix}." if any(name.startswith(f"{family.prefix}.") for name in source.names()) else ""
    layers = source.count(prefix + family.layers)
    if not layers:
        source.shape(f"{prefix}{family.layers}0.{family.layer['attention.query']}.weight", 2)  # says that there is none
    source.ignore(f"{prefix}embeddings.position_ids")  # a buffer of older versions
    source.ignore(f"{prefix}embeddings.token_type_ids")
    weights, embedding = _embedding(family, prefix, source, settings)
    vocab, hidden = weights["embedding.0"].shape
    names = [f"{prefix}{family.layers}{index}." for index in range(layers)]
    activation = read_activation(settings, family.settings["activation"], "gelu")
    heads = read_heads(settings, family.settings["heads"], hidden, [_query_rows(source, name, family) for name in names], notes)
    eps = _norm_eps(family, settings)
    widths = _widths(family, source, settings, names, heads)
    for index, name in enumerate(names):
        weights |= _layer(family, source, name, f"layers.{index}.", hidden, len(heads.kept[index]) * heads.head_dim, widths[index])
    settings.agree(family.settings["hidden"], hidden, "columns of the word embeddings")
    settings.agree(family.settings["layers"], layers, "layers in the file")
    settings.agree(family.settings["vocab"], vocab, "rows of the word embeddings")
    head, of_head = read_head(task, family, prefix, source, settings, weights["embedding.0"], activation)
    if settings.has("task") and prefix and (others := source.ignore_outside(prefix)):
        notes.append(f"task {task} was asked for: {', '.join(others)} not read")
    specs = tuple(layer_spec(heads, kept, width, activation, eps) for kept, width in zip(heads.kept, widths, strict=True))
    spec = ModelSpec(hidden, vocab, specs, embedding, head, task)
    return Checkpoint(spec, {**weights, **of_head}), heads.kept


def write_encoder(family: Family, spec: ModelSpec, weights: Mapping[str, np.ndarray], architecture: str) -> Weights:
    """The tensors by their names in a file of the class `architecture`."""
    return {theirs: weights[ours] for ours, theirs in family.names(spec, architecture).items()}


def _embedding(family: Family, prefix: str, source: SourceTensors, settings: Settings) -> tuple[Weights, Embedding]:
    """word, position and token-type rows, then a norm; RoBERTa's positions start behind the pad token's id and pass over it."""
    words = prefix + family.embeddings["words"]
    vocab, hidden = source.shape(words, 2)
    positions = source.shape(prefix + family.embeddings["positions"], 2)[0]
    settings.agree(family.settings["positions"], positions, "rows of the position embeddings")
    weights = {
        "embedding.0": source.take(words, (vocab, hidden)),
        "embedding.positions": source.take(prefix + family.embeddings["positions"], (positions, hidden)),
    }
    types = 0
    if "token_types" in family.embeddings:
        types = source.shape(prefix + family.embeddings["token_types"], 2)[0]
        settings.agree(family.settings["token_types"], types, "rows of the token-type embeddings")
        weights["embedding.token_types"] = source.take(prefix + family.embeddings["token_types"], (types, hidden))
    for part, ours in (("weight", "embedding.norm"), ("bias", "embedding.norm_bias")):
        weights[ours] = source.take(f"{prefix}{family.embeddings['norm']}.{part}", (hidden,))
    pad = settings.integer("pad_token_id", 1) if family.pads else None
    offset = 0 if pad is None else pad + 1
    return weights, Embedding((Cluster(vocab, hidden, False),), 1.0, positions, offset, types, True, pad)


def _query_rows(source: SourceTensors, layer: str, family: Family) -> tuple[str, int]:
    """A layer without heads has queries of no rows, or none."""
    name = f"{layer}{family.layer['attention.query']}.weight"
    return name, source.rows(name)


def _norm_eps(family: Family, settings: Settings) -> float:
    name = family.settings.get("norm_eps")
    return family.norm_eps if name is None else settings.number(name, family.norm_eps)


def _widths(family: Family, source: SourceTensors, settings: Settings, names: list[str], heads: Heads) -> list[int]:
    """Rows of each layer's first feed-forward matrix, which may differ; the configuration must agree."""
    widths = []
    common = settings.value(family.settings["width"])
    for index, name in enumerate(names):
        tensor = f"{name}{family.layer['feed_forward.up']}.weight"
        width = source.shape(tensor, 2)[0]
        said = heads.widths.get(index, common)
        if said is not None and said != width and source.sound(tensor):
            where = "config per_layer_config" if index in heads.widths else f"config {family.settings['width']}"
            settings.problem(f"{where}: layer {index}", f"{width}, the rows of {tensor}", repr(said)[:60])
        widths.append(width)
    return widths


def _layer(family: Family, source: SourceTensors, theirs: str, ours: str, hidden: int, rows: int, width: int) -> Weights:
    """rows: heads · head_dim of the layer; with no heads its query, key and value are left out and its output is the bias alone."""
    shapes = {
        "attention.query": (rows, hidden),
        "attention.key": (rows, hidden),
        "attention.value": (rows, hidden),
        "attention.output": (hidden, rows),
        "feed_forward.up": (width, hidden),
        "feed_forward.down": (hidden, width),
    }
    weights: dict[str, np.ndarray] = {}
    for name, called in family.layer.items():
        weight, bias = f"{theirs}{called}.weight", f"{theirs}{called}.bias"
        shape = shapes.get(name)
        if shape is None:
            weights[f"{ours}{name}"], weights[f"{ours}{name}_bias"] = source.take(weight, (hidden,)), source.take(bias, (hidden,))
            continue
        if 0 in shape:
            source.optional(weight, shape)
        else:
            weights[f"{ours}{name}"] = source.take(weight, shape)
        if shape[0]:
            weights[f"{ours}{name}_bias"] = source.take(bias, shape[:1])
        else:
            source.optional(bias, shape[:1])
    return weights


def layer_spec(heads: Heads, kept: tuple[int, ...], width: int, activation: Activation, eps: float) -> LayerSpec:
    """A bidirectional layer, its norms behind the sums."""
    attention = AttentionSpec(
        source_heads=heads.source_heads,
        kept=kept,
        kv_of=tuple(range(len(kept))),
        head_dim=heads.head_dim,
        position=Absolute(),
        persistent=0,
        causal=False,
        sees_self=True,
        window=None,
        segment=None,
        start="empty",
        spans=None,
        span_ramp=None,
        bias=True,
        output_bias=True,
        scaled=False,
    )
    return LayerSpec(attention, FeedForward(width, activation, gated=False, bias=True), "layer", False, eps, 0.0)
