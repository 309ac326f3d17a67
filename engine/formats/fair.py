"""FAIR adaptive-span and All-attention checkpoints → Checkpoint (arXiv 1905.07799, 1907.01470; repository facebookresearch/adaptive-span).

Post-norm layers whose tokens see distances 1..L of one position table shared by heads and layers, with persistent memory in place of the
feed-forward or without. Sizes come from shapes. What the file lacks comes from args.json or options, by flag (`adapt_span_ramp`) or by the
program's internal name; the program's own defaults are a ramp of 32 (used, with a note, where nothing gives it), block_sz 64 and
adapt_span_cache off (without effect on the answers: streaming is exact and the cache never shorter than the span).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from engine.checkpoint import Checkpoint
from engine.errors import Problem
from engine.formats.base import Converted, Converter, Settings, SourceTensors, refuse
from engine.formats.flags import flat_flags, report_unknown
from engine.formats.vocabulary import ClusterEntries, InputRows, OutputRows, build, same
from engine.spec import AttentionSpec, FeedForward, LayerSpec, ModelSpec, SharedTable

NORM_EPS = 1e-5
DEFAULT_RAMP = 32
LARGEST = 1e30  # tokens of a span, far below where float32 ends
TRIM_STEP = 64  # the program trims keys beyond the widest span in steps of 64
SYNONYMS = {  # the program's internal name → its flag
    "hidden_size": "hid_sz",
    "inner_hidden_size": "inner_hid_sz",
    "nb_layers": "nlayers",
    "nb_heads": "nheads",
    "block_size": "block_sz",
    "adapt_span_enabled": "adapt_span",
    "adapt_io_enabled": "adapt_io",
}
FLAGS = (
    *("nlayers", "hid_sz", "nheads", "attn_span", "block_sz", "inner_hid_sz", "pers_mem_size", "vocab_size"),
    *("adapt_span", "adapt_span_ramp", "adapt_span_cache", "adapt_io", "adapt_io_cutoffs", "adapt_io_divval", "adapt_io_tied"),
)
TRAINING = (  # flags and internal names without a meaning after training
    *(
        "data",
        "data_path",
        "data_unit",
        "dropout",
        "emb_dropout",
        "lr",
        "momentum",
        "optim",
        "lr_warmup",
        "grad_clip",
        "batch_sz",
        "batch_size",
    ),
    *(
        "batch_split",
        "nbatches",
        "nb_batches_per_iter",
        "niter",
        "nb_iter",
        "checkpoint",
        "checkpoint_path",
        "full_eval_mode",
        "distributed",
    ),
    *("adapt_span_loss", "adapt_span_init", "local_rank", "rank", "world_size", "device"),
)


@dataclass(frozen=True)
class _Sizes:
    """What the shapes say, each by the vote of every tensor that shows it."""

    layers: int
    hidden: int
    heads: int
    head_dim: int
    span: int  # Ls, the rows of the position table
    persistent: int
    inner: int  # width of the feed-forward, 0 with persistent memory
    adaptive_span: bool


class Fair(Converter):
    """Names and shapes of FAIR state dicts, and what they mean."""

    name = "fair"
    config_names = ("args.json",)
    options = (*FLAGS, *SYNONYMS)

    def recognises(self, names: Sequence[str]) -> bool:
        return "key_pe" in names or any(name.startswith("layers.") and name.endswith(".attn.proj_query.weight") for name in names)

    def read(self, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any], options: Mapping[str, Any], path: Path) -> Converted:
        problems: list[Problem] = []
        notes: list[str] = []
        source = SourceTensors(tensors, problems)
        flags = flat_flags(config, SYNONYMS, "config", problems)
        unread = report_unknown(flags, FLAGS, TRAINING, problems, notes)
        settings = Settings(flags, flat_flags(options, SYNONYMS, "option", problems), problems, notes)
        settings.unknown_options(FLAGS)

        sizes = _sizes(source, settings)
        ramp = _ramp(sizes, settings, notes)
        # row i of ours is distance i + 1; column Ls - distance of theirs
        weights = {"position.table": source.take("key_pe", (1, sizes.head_dim, sizes.span))[0, :, ::-1].T.copy()}
        layers = []
        for index in range(sizes.layers):
            weights.update((f"layers.{index}.{name}", array) for name, array in _layer(source, index, sizes).items())
            ratios = _span_ratios(source, index, sizes, problems) if sizes.adaptive_span else None
            layers.append(_layer_spec(sizes, ratios, ramp))
        inputs, outputs, entries = _vocabulary(source, settings, sizes.hidden)
        source.finish()
        refuse(problems, self, path)

        scale = 1.0 if entries is None else math.sqrt(sizes.hidden)
        embedding, head, tokens = build(inputs, outputs, entries, scale=scale)
        spec = ModelSpec(
            hidden=sizes.hidden,
            vocab=sum(cluster.size for cluster in embedding.clusters),
            layers=tuple(layers),
            embedding=embedding,
            head=head,
            task="causal_lm",
        )
        every = tuple(tuple(range(sizes.heads)) for _ in layers)
        return Converted(Checkpoint(spec, {**tokens, **weights}), every, None, notes, unread)


CONVERTER = Fair()


def _sizes(source: SourceTensors, settings: Settings) -> _Sizes:
    layers = source.count("layers.")
    if not layers:
        source.shape("layers.0.attn.proj_query.weight", 2)  # says that there is none
    names = [f"layers.{index}." for index in range(layers)]
    memories = [f"{name}attn.attn.persistent_memory." for name in names]
    hidden = source.size(
        "the hidden size", ((f"{name}attn.proj_{part}.weight", 2, 1) for name in names for part in ("query", "key", "val"))
    )
    persistent = 0
    if any(f"{memory}{part}" in source for memory in memories for part in ("key", "val")):
        places = [(f"{memory}{part}", 3, axis) for memory in memories for part, axis in (("key", 2), ("val", 1))]
        persistent = source.size("persistent vectors", places)
    inner = 0 if persistent else source.size("the width of the feed-forward", ((f"{name}ff.fc1.weight", 2, 0) for name in names))
    _, head_dim, span = source.shape("key_pe", 3)
    sizes = _Sizes(
        layers=layers,
        hidden=hidden,
        heads=max(hidden // head_dim, 1),
        head_dim=head_dim,
        span=span,
        persistent=persistent,
        inner=inner,
        adaptive_span=any(f"{name}attn.attn.adaptive_span._mask.current_val" in source for name in names),
    )
    if sizes.heads * head_dim != hidden:
        settings.problem("key_pe", f"a head size that divides the hidden size {hidden}", str(head_dim))
    settings.agree("nlayers", layers, "layers in the file")
    settings.agree("hid_sz", hidden, "the hidden size of the file")
    settings.agree("nheads", sizes.heads, "heads in the file")
    settings.agree("attn_span", span, "columns of key_pe")
    settings.agree("pers_mem_size", persistent, "persistent vectors in the file")
    if inner:  # with persistent memory the program has no feed-forward and ignores the flag
        settings.agree("inner_hid_sz", inner, "the width of the feed-forward in the file")
    settings.agree("adapt_span", sizes.adaptive_span, "as the file has spans or not")
    return sizes


def _ramp(sizes: _Sizes, settings: Settings, notes: list[str]) -> int | None:
    settings.integer("block_sz", 64, least=1)
    settings.boolean("adapt_span_cache", False)
    if not sizes.adaptive_span:
        return None
    if not settings.has("adapt_span_ramp"):
        notes.append(f"adapt_span_ramp: neither the file nor its configuration gives it; the program's default {DEFAULT_RAMP} is used")
    return settings.integer("adapt_span_ramp", DEFAULT_RAMP, least=1)


def _layer(source: SourceTensors, index: int, sizes: _Sizes) -> dict[str, np.ndarray]:
    prefix, d = f"layers.{index}.", sizes.hidden
    weights = {
        "attention_norm": source.take(f"{prefix}norm1.weight", (d,)),
        "attention_norm_bias": source.take(f"{prefix}norm1.bias", (d,)),
    }
    for ours, theirs in (("query", "query"), ("key", "key"), ("value", "val"), ("output", "out")):
        weights[f"attention.{ours}"] = source.take(f"{prefix}attn.proj_{theirs}.weight", (d, d))
    if sizes.persistent:
        memory, heads, dim = f"{prefix}attn.attn.persistent_memory.", sizes.heads, sizes.head_dim
        weights["attention.persistent_keys"] = source.take(f"{memory}key", (heads, dim, sizes.persistent)).transpose(0, 2, 1)
        weights["attention.persistent_values"] = source.take(f"{memory}val", (heads, sizes.persistent, dim))
        return weights
    weights["feed_forward_norm"] = source.take(f"{prefix}norm2.weight", (d,))
    weights["feed_forward_norm_bias"] = source.take(f"{prefix}norm2.bias", (d,))
    for ours, theirs, shape in (("up", "fc1", (sizes.inner, d)), ("down", "fc2", (d, sizes.inner))):
        weights[f"feed_forward.{ours}"] = source.take(f"{prefix}ff.{theirs}.weight", shape)
        weights[f"feed_forward.{ours}_bias"] = source.take(f"{prefix}ff.{theirs}.bias", shape[:1])
    return weights


def _span_ratios(source: SourceTensors, index: int, sizes: _Sizes, problems: list[Problem]) -> list[float]:
    """z per head. The mask stands twice in a file with persistent memory, which holds the same module; both must say the same."""
    attention = f"layers.{index}.attn.attn."
    own, alias = f"{attention}adaptive_span._mask.", f"{attention}persistent_memory.adaptive_span._mask."
    values = source.take(f"{own}current_val", (sizes.heads, 1, 1))
    template = source.optional(f"{own}mask_template", (sizes.span,))
    if template is not None and not _counts_up(template):
        problems.append(Problem(f"{own}mask_template", f"the numbers {1 - sizes.span} to 0", "others"))
    for part, original in (("current_val", values), ("mask_template", template)):
        copy = source.optional(f"{alias}{part}", original.shape) if sizes.persistent and original is not None else None
        if copy is not None and not same(original, copy):
            problems.append(Problem(f"{alias}{part}", f"the same numbers as {own}{part}", "others"))
    ratios = [float(z) for z in values.reshape(-1)]
    if any(abs(z) * sizes.span > LARGEST for z in ratios):
        problems.append(Problem(f"{own}current_val", "ratios of the attention span", str(ratios)[:60]))
    return ratios


def _counts_up(template: np.ndarray) -> bool:
    """Whether the mask's template is the distances 1 - Ls .. 0 it is always saved with, up to the rounding of its type."""
    return bool(np.allclose(np.asarray(template, np.float64), np.arange(1 - len(template), 1), rtol=2**-7, atol=1e-3))


def _layer_spec(sizes: _Sizes, ratios: list[float] | None, ramp: int | None) -> LayerSpec:
    attention = AttentionSpec(
        source_heads=sizes.heads,
        kept=tuple(range(sizes.heads)),
        kv_of=tuple(range(sizes.heads)),
        head_dim=sizes.head_dim,
        position=SharedTable(rows=sizes.span),
        persistent=sizes.persistent,
        causal=True,
        sees_self=False,
        window=sizes.span if ratios is None else _window(ratios, sizes.span, ramp or DEFAULT_RAMP),
        segment=None,
        start="attended_zeros",
        spans=None if ratios is None else tuple(float(np.float32(z * sizes.span)) for z in ratios),  # as the program's mask rounds it
        span_ramp=ramp,
        bias=False,
        output_bias=False,
        scaled=False,
    )
    feed_forward = None if sizes.persistent else FeedForward(sizes.inner, activation="relu", gated=False, bias=True)
    return LayerSpec(attention, feed_forward, norm="layer", norm_first=False, norm_eps=NORM_EPS, norm_offset=0.0)


def _window(ratios: Sequence[float], span: int, ramp: int) -> int:
    """Distances the program computes for a layer: Ls less what lies beyond the widest span and its ramp, in steps of 64.

    Formula: class AdaptiveSpan of adaptive_span.py (arXiv 1905.07799). Keys beyond a head's own span still take part in its softmax before
    the mask, so the window is part of the answer. It is that of all heads of the source and stays when heads= or prune takes the widest one
    away: the compact model equals the source with those heads' outputs zeroed; the program itself would differ in the last digits.
    """
    current = min(max(math.ceil(max(ratios) * span) + ramp, 0), span)  # the file's float32 z, times Ls in double precision
    trim = min(span - 1, span - current) // TRIM_STEP * TRIM_STEP
    return span - trim


def _vocabulary(source: SourceTensors, settings: Settings, hidden: int) -> tuple[list[InputRows], list[OutputRows], ClusterEntries | None]:
    """Plain: one unscaled table, one output matrix. Adaptive: every cluster projected, entries in reverse order on the projected state."""
    count = max(map(source.count, ("in_emb.emb_layers.", "in_emb.emb_projs.", "out_emb.out_layers.", "out_emb.out_projs.")))
    settings.agree("adapt_io", bool(count), "as the file has clusters or not")
    if not count:
        vocab = source.size("the vocabulary", [("in_emb.weight", 2, 0), ("out_emb.weight", 2, 0), ("out_emb.bias", 1, 0)])
        settings.agree("vocab_size", vocab, "rows of in_emb")
        rows = InputRows(source.take("in_emb.weight", (vocab, hidden)))
        return [rows], [OutputRows(source.take("out_emb.weight", (vocab, hidden)), source.take("out_emb.bias", (vocab,)))], None

    inputs, outputs = [], []
    for index in range(count):
        places = [f"in_emb.emb_layers.{index}.weight", f"out_emb.out_layers.{index}.weight"]
        size = source.size(f"tokens of cluster {index}", [(place, 2, 0) for place in places])
        width = source.size(f"width of cluster {index}", [(place, 2, 1) for place in places])
        inputs.append(InputRows(source.take(places[0], (size, width)), source.take(f"in_emb.emb_projs.{index}", (hidden, width))))
        bias = source.take(f"out_emb.out_layers.{index}.bias", (size,))
        outputs.append(OutputRows(source.take(places[1], (size, width)), bias, source.take(f"out_emb.out_projs.{index}", (hidden, width))))
    _check_clusters(settings, inputs, outputs, hidden)
    entries = ClusterEntries(
        source.take("out_emb.cluster_proj.weight", (count - 1, inputs[0].rows.shape[1])),
        source.take("out_emb.cluster_proj.bias", (count - 1,)),
        order="descending",
        cluster_input="projected",
    )
    return inputs, outputs, entries


def _check_clusters(settings: Settings, inputs: list[InputRows], outputs: list[OutputRows], hidden: int) -> None:
    sizes, widths = [given.rows.shape[0] for given in inputs], [given.rows.shape[1] for given in inputs]
    settings.agree("adapt_io_cutoffs", list(accumulate(sizes[:-1])), "the clusters of the file")
    settings.agree("vocab_size", sum(sizes), "rows of all clusters")
    if settings.has("adapt_io_divval"):
        div_value = settings.integer("adapt_io_divval", least=1)
        expected = [hidden // div_value**index for index in range(len(widths))]
        if expected != widths:
            settings.problem("adapt_io_divval", f"one that gives the clusters' widths {widths}", f"{div_value}, which gives {expected}")
    tied = all(same(i.rows, o.rows) and same(i.projection, o.projection) for i, o in zip(inputs, outputs, strict=True))
    if not tied and settings.boolean("adapt_io_tied", False):
        settings.problem("adapt_io_tied", "false: input and output clusters of the file differ", "true")
