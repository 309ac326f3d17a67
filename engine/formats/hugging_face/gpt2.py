"""GPT-2 (Radford et al. 2019) → Checkpoint: pre-norm, causal, learned positions, no window but as many tokens as there are positions.

Its Conv1D matrices are [in, out], the transpose of a linear layer's; c_attn holds queries, keys and values side by side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from engine.checkpoint import Checkpoint
from engine.formats.base import Settings, SourceTensors
from engine.formats.hugging_face.architecture import Architecture, Kept
from engine.formats.hugging_face.encoder import layer_spec
from engine.formats.hugging_face.family import weight_and_bias
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
    not_off,
    read_activation,
)
from engine.formats.hugging_face.tasks import is_tied
from engine.formats.hugging_face.tokenizer import byte_pair_files
from engine.spec import Activation, Cluster, Embedding, LayerSpec, ModelSpec, OutputCluster, Task, Vocabulary

Weights = dict[str, np.ndarray]
PREFIX = "transformer."
DECODERS = ("lm_head.weight", "lm_head.decoder.weight")  # the second before transformers 2
BUFFERS = ("attn.bias", "attn.masked_bias")  # triangles of ones that older versions kept
TASKS: dict[str, Task] = {"LMHeadModel": "causal_lm", "Model": "causal_lm"}  # the bare one has the same head: its own words
CLASSES = tuple(f"GPT2{ending}" for ending in TASKS)


def read_gpt2(task: Task, source: SourceTensors, settings: Settings, notes: list[str]) -> tuple[Checkpoint, Kept]:
    """The whole model; problems of tensors and settings are collected in both."""
    prefix = PREFIX if any(name.startswith(PREFIX) for name in source.names()) else ""
    layers = source.count(f"{prefix}h.")
    if not layers:
        source.shape(f"{prefix}h.0.attn.c_attn.weight", 2)  # says that there is none
    vocab, hidden = source.shape(f"{prefix}wte.weight", 2)
    positions = source.shape(f"{prefix}wpe.weight", 2)[0]
    for name, found, what in (
        ("n_layer", layers, "layers in the file"),
        ("n_embd", hidden, "columns of wte.weight"),
        ("vocab_size", vocab, "rows of wte.weight"),
        ("n_positions", positions, "rows of wpe.weight"),
    ):
        settings.agree(name, found, what)
    names = [f"{prefix}h.{index}." for index in range(layers)]
    rows = [(f"{name}attn.c_proj.weight", source.rows(f"{name}attn.c_proj.weight")) for name in names]
    heads = read_heads(settings, "n_head", hidden, rows, notes)
    widths = [_width(source, settings, name, heads.widths.get(index)) for index, name in enumerate(names)]
    weights = {
        "embedding.0": source.take(f"{prefix}wte.weight", (vocab, hidden)),
        "embedding.positions": source.take(f"{prefix}wpe.weight", (positions, hidden)),
        **_norm(source, f"{prefix}ln_f", "final_norm", hidden),
    }
    for index, name in enumerate(names):
        weights |= _layer(source, name, f"layers.{index}.", hidden, len(heads.kept[index]) * heads.head_dim, widths[index])
    decoders = [name for name in DECODERS if name in source] or [DECODERS[0]]
    tied = all([is_tied(source, settings, name, weights["embedding.0"]) for name in decoders])
    if not tied:
        weights["head.0"] = source.take(decoders[0], (vocab, hidden))
        for name in decoders[1:]:
            if not np.array_equal(source.take(name, (vocab, hidden)), weights["head.0"]):
                settings.problem(name, f"the numbers of {decoders[0]}, which it is another name of", "others")
    head = Vocabulary((OutputCluster(vocab, hidden, False, tied, False),), "ascending", "hidden", bias=False)
    activation, eps = read_activation(settings, "activation_function", "gelu_new"), settings.number("layer_norm_epsilon", 1e-5)
    specs = tuple(
        _layer_spec(heads, kept, width, activation, eps, _score_scale(settings, index, heads.head_dim))
        for index, (kept, width) in enumerate(zip(heads.kept, widths, strict=True))
    )
    embedding = Embedding((Cluster(vocab, hidden, False),), 1.0, positions)
    spec = ModelSpec(hidden, vocab, specs, embedding, head, task, final_norm=True)
    return Checkpoint(spec, weights), heads.kept


def read_gpt2_task(_: SourceTensors, settings: Settings, __: list[str]) -> Task:
    """causal_lm, the only one converted: an architecture or an option of another is a problem."""
    architectures = settings.value("architectures")
    if architectures and not (isinstance(architectures, list) and architectures[0] in CLASSES):
        expected = f"{' or '.join(CLASSES)}, the language model; no other head of GPT-2 is converted"
        settings.problem("config architectures", expected, repr(architectures)[:80])
    if settings.value("task") not in (None, "causal_lm"):
        settings.problem("option task", "causal_lm for GPT-2", repr(settings.value("task"))[:60])
    return "causal_lm"


def _score_scale(settings: Settings, layer: int, head_dim: int) -> float:
    """The published model divides scores by √head_dim alone; two settings change that."""
    scale = 1.0 if settings.boolean("scale_attn_weights", True) else math.sqrt(head_dim)
    return scale / (layer + 1) if settings.boolean("scale_attn_by_inverse_layer_idx", False) else scale


def _width(source: SourceTensors, settings: Settings, layer: str, said: int | None) -> int:
    """Columns of the first feed-forward matrix; n_inner, absent or null, stands for four times the hidden size."""
    tensor = f"{layer}mlp.c_fc.weight"
    hidden, width = source.shape(tensor, 2)
    expected = said or settings.value("n_inner") or 4 * hidden
    if expected != width and source.sound(tensor):
        settings.problem("config n_inner", f"{width}, the columns of {tensor}", repr(expected)[:60])
    return width


def _layer(source: SourceTensors, theirs: str, ours: str, hidden: int, rows: int, width: int) -> Weights:
    """rows: heads · head_dim; with no heads c_attn is empty or absent and the attention's output is its bias alone."""
    for name in BUFFERS:
        source.ignore(theirs + name)
    weights = _norm(source, f"{theirs}ln_1", f"{ours}attention_norm", hidden)
    weights |= _norm(source, f"{theirs}ln_2", f"{ours}feed_forward_norm", hidden)
    if rows:
        stacked = source.take(f"{theirs}attn.c_attn.weight", (hidden, 3 * rows))
        biases = source.take(f"{theirs}attn.c_attn.bias", (3 * rows,))
        for index, name in enumerate(("query", "key", "value")):
            part = slice(index * rows, (index + 1) * rows)
            weights[f"{ours}attention.{name}"], weights[f"{ours}attention.{name}_bias"] = stacked[:, part].T, biases[part]
        weights[f"{ours}attention.output"] = source.take(f"{theirs}attn.c_proj.weight", (rows, hidden)).T
    else:
        source.optional(f"{theirs}attn.c_attn.weight", (hidden, 0))
        source.optional(f"{theirs}attn.c_attn.bias", (0,))
        source.optional(f"{theirs}attn.c_proj.weight", (0, hidden))
    weights[f"{ours}attention.output_bias"] = source.take(f"{theirs}attn.c_proj.bias", (hidden,))
    for name, called, shape in (("up", "c_fc", (hidden, width)), ("down", "c_proj", (width, hidden))):
        weights[f"{ours}feed_forward.{name}"] = source.take(f"{theirs}mlp.{called}.weight", shape).T
        weights[f"{ours}feed_forward.{name}_bias"] = source.take(f"{theirs}mlp.{called}.bias", shape[1:])
    return weights


def _norm(source: SourceTensors, theirs: str, ours: str, hidden: int) -> Weights:
    return {ours: source.take(f"{theirs}.weight", (hidden,)), f"{ours}_bias": source.take(f"{theirs}.bias", (hidden,))}


def _layer_spec(heads: Heads, kept: tuple[int, ...], width: int, activation: Activation, eps: float, score_scale: float) -> LayerSpec:
    """An encoder's layer that sees only what came before, its norms in front."""
    layer = layer_spec(heads, kept, width, activation, eps)
    return replace(layer, attention=replace(layer.attention, causal=True, score_scale=score_scale), norm_first=True)


def write_gpt2(spec: ModelSpec, weights: Mapping[str, np.ndarray], _: str) -> Weights:
    """Matrices transposed, query, key and value side by side."""
    tensors = {"transformer.wte.weight": weights["embedding.0"], "transformer.wpe.weight": weights["embedding.positions"]}
    if "head.0" in weights:
        tensors["lm_head.weight"] = weights["head.0"]
    for index in range(len(spec.layers)):
        ours, theirs = f"layers.{index}.", f"transformer.h.{index}."
        parts = [f"{ours}attention.{name}" for name in ("query", "key", "value")]
        tensors[f"{theirs}attn.c_attn.weight"] = np.concatenate([weights[name] for name in parts]).T
        tensors[f"{theirs}attn.c_attn.bias"] = np.concatenate([weights[f"{name}_bias"] for name in parts])
        for name, called in (("attention.output", "attn.c_proj"), ("feed_forward.up", "mlp.c_fc"), ("feed_forward.down", "mlp.c_proj")):
            tensors[f"{theirs}{called}.weight"] = weights[ours + name].T
            tensors[f"{theirs}{called}.bias"] = weights[f"{ours}{name}_bias"]
        for name, called in (("attention_norm", "ln_1"), ("feed_forward_norm", "ln_2")):
            tensors |= {called: weights[name] for name, called in weight_and_bias(ours + name, theirs + called).items()}
    return tensors | {theirs: weights[ours] for ours, theirs in weight_and_bias("final_norm", "transformer.ln_f").items()}


GPT2 = Architecture(
    classes="GPT2",
    tasks=TASKS,
    recognised_by="h.0.attn.c_attn.",
    read_task=read_gpt2_task,
    read=read_gpt2,
    write=write_gpt2,
    tokenizer=partial(byte_pair_files, roberta=False),
    honoured=(
        *HONOURED,
        *("n_layer", "n_embd", "n_head", "n_inner", "n_positions", "vocab_size", "activation_function", "layer_norm_epsilon"),
        *("scale_attn_weights", "scale_attn_by_inverse_layer_idx"),
    ),
    harmless=HARMLESS,
    changes_the_computation={
        **CHANGES,
        **dict.fromkeys((*NORM_FIRST, *CAUSAL), not_off),
        "embedding_size": as_wide_as("n_embd"),
        **dict.fromkeys(KEY_HEADS, as_many_as("n_head")),
    },
    second_names=(*SECOND_NAMES, "max_position_embeddings"),
    prefix="transformer",
    layers="h.",
)
