"""aiha-lab All-attention checkpoints → Checkpoint (S1 = arXiv 2110.03252; repository aiha-lab/Attention-Head-Pruning).

Pre-norm or post-norm layers of attention with persistent memory, learned relative positions, hard-concrete gates per head. The file
holds no hyper-parameters: sizes come from shapes, memory length and same_length from config.json or options.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.checkpoint import Checkpoint
from engine.errors import Problem
from engine.formats.aiha_vocabulary import read_vocabulary
from engine.formats.base import Converted, Converter, Settings, SourceTensors, refuse
from engine.spec import AttentionSpec, LayerSpec, ModelSpec, Table

NORM_EPS = 1e-5
LOADERS = ("test_dataloader", "valid_dataloader", "train_dataloader")
SIZES = ("num_layers", "num_heads", "hidden_dim", "feedforward_dim", "max_len", "cutoffs", "div_value")
CHOICES = ("mem_length", "same_length", "seq_length", "output_scale", "pre_norm", "attn_bias", "share_r_bias", "tie_proj")
TRAINING = (  # of the configuration's model section, without a meaning after training; pos_clamp_length has no effect in the published code
    *("attn_drop_prob", "proj_drop_prob", "qkv_drop_prob", "input_drop_prob", "output_drop_prob", "word_drop_prob"),
    *("axial_drop", "pos_clamp_length", "tie_weight"),
)


@dataclass(frozen=True)
class _Sizes:
    """What the shapes say, each by the vote of every tensor that shows it."""

    layers: int
    hidden: int
    heads: int
    head_dim: int
    persistent: int
    rows: int  # of the position table, 0 where it cannot be told
    bias: bool
    shared_biases: bool
    gated: bool
    norm_first: bool


class AihaLab(Converter):
    """Names and shapes of aiha-lab state dicts, and what they mean."""

    name = "aiha-lab"
    config_names = ("config.json",)
    options = (*CHOICES, *SIZES)

    def recognises(self, names: Sequence[str]) -> bool:
        return any(name.startswith("layers.") and name.endswith((".attn.q_proj.weight.data", ".attn.mem_k.data")) for name in names)

    def read(self, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any], options: Mapping[str, Any], path: Path) -> Converted:
        problems: list[Problem] = []
        notes: list[str] = []
        source = SourceTensors(tensors, problems)
        unread: list[str] = []
        settings = Settings(_flat(config, problems, notes, unread), options, problems, notes)
        settings.unknown_options(self.options)

        sizes = _sizes(source, settings)
        window, segment = _visible(settings, sizes.rows, problems, notes)
        weights = {"position.table": source.take("pos_emb.data", (1, sizes.rows, sizes.hidden))[0, ::-1]}  # row P-1-δ is distance δ
        for index in range(sizes.layers):
            weights.update((f"layers.{index}.{name}", array) for name, array in _layer(source, index, sizes).items())
        kept = tuple(_kept(source, index, sizes) for index in range(sizes.layers))
        scales = _scales(settings.value("output_scale"), kept, sizes.heads, problems)
        vocabulary = read_vocabulary(source, settings, sizes.hidden, problems)
        source.finish()
        refuse(problems, self, path)

        embedding, head, tokens = vocabulary.build()
        attention = AttentionSpec(
            source_heads=sizes.heads,
            kept=tuple(range(sizes.heads)),
            kv_of=tuple(range(sizes.heads)),
            head_dim=sizes.head_dim,
            position=Table(rows=sizes.rows),
            persistent=sizes.persistent,
            causal=True,
            sees_self=True,
            window=window,
            segment=segment,
            start="attended_zeros",
            spans=None,
            span_ramp=None,
            bias=sizes.bias,
            output_bias=True,
            scaled=False,
        )
        layer = LayerSpec(attention, None, norm="layer", norm_first=sizes.norm_first, norm_eps=NORM_EPS, norm_offset=1.0)
        spec = ModelSpec(
            hidden=sizes.hidden,
            vocab=sum(cluster.size for cluster in embedding.clusters),
            layers=(layer,) * sizes.layers,
            embedding=embedding,
            head=head,
            task="causal_lm",
        )
        return Converted(Checkpoint(spec, {**tokens, **weights}), kept, scales, notes, unread)


CONVERTER = AihaLab()


def _flat(config: Mapping[str, Any], problems: list[Problem], notes: list[str], unread: list[str]) -> dict[str, Any]:
    """The settings of the repository's nested configuration; settings at its top level count where `model` has none.

    unread: gets the keys that are on no list.
    """
    flat = {key: value for key, value in config.items() if key in AihaLab.options}
    model = _section(config, "model", problems)
    for key, value in model.items():
        if key in AihaLab.options:
            flat[key] = value
        elif key not in TRAINING:
            notes.append(f"model.{key} of the configuration is not known and not used")
            unread.append(f"model.{key}")
    loaders = _section(config, "dataloader", problems)
    test, *others = [(name, _section(loaders, name, problems)) for name in LOADERS]
    for key in ("mem_length", "seq_length"):
        chosen = test[1].get(key)
        if chosen is None:
            continue
        flat[key] = chosen
        if key == "mem_length" or flat.get("same_length") is False:
            notes.extend(
                f"{key}: {chosen!r} of test_dataloader is used; {name} has {loader[key]!r}"
                for name, loader in others
                if loader.get(key) not in (None, chosen)
            )
    return flat


def _section(config: Mapping[str, Any], name: str, problems: list[Problem]) -> Mapping[str, Any]:
    section = config.get(name)
    if section is not None and not isinstance(section, Mapping):
        problems.append(Problem(f"config {name}", "an object", repr(section)[:60]))
    return section if isinstance(section, Mapping) else {}


def _sizes(source: SourceTensors, settings: Settings) -> _Sizes:
    layers = source.count("layers.")
    if not layers:
        source.shape("layers.0.attn.q_proj.weight.data", 2)  # says that there is none
    names = [f"layers.{index}.attn." for index in range(layers)]
    persistent = [name for name in names if f"{name}mem_k.data" in source]
    hidden = source.size("the hidden size", [("pos_emb.data", 3, 2), *((f"{name}q_proj.weight.data", 2, 1) for name in names)])
    if persistent:
        heads = source.size("the number of heads", [(f"{name}{part}.data", 4, 1) for name in persistent for part in ("mem_k", "mem_v")])
        vectors = source.size("persistent vectors", [(f"{name}{part}.data", 4, 2) for name in persistent for part in ("mem_k", "mem_v")])
    else:
        gates = [(f"{name}gate.gate.data", 1, 0) for name in names if f"{name}gate.gate.data" in source]
        heads = source.size("the number of heads", gates) if gates else settings.integer("num_heads", least=1)
        vectors = 0
    table = source.shape("pos_emb.data", 3)
    rows = table[1] if source.sound("pos_emb.data") else 0
    sizes = _Sizes(
        layers=layers,
        hidden=hidden,
        heads=heads,
        head_dim=max(hidden // heads, 1),
        persistent=vectors,
        rows=rows,
        bias=any(f"{name}q_proj.bias.data" in source for name in names),
        shared_biases="rel_query_bias.data" in source or "rel_pos_bias.data" in source,
        gated=any(f"{name}gate.gate.data" in source for name in names),
        norm_first=not any(f"layers.{index}.projection.norm.weight.data" in source for index in range(layers)),
    )
    settings.agree("num_layers", layers, "layers in the file")
    settings.agree("num_heads", heads, "heads in the file")
    settings.agree("hidden_dim", hidden, "the hidden size of the file")
    settings.agree("feedforward_dim", vectors, "persistent vectors in the file")
    settings.agree("max_len", rows or settings.value("max_len"), "rows of pos_emb")
    settings.agree("attn_bias", sizes.bias, "as the file has it")
    settings.agree("share_r_bias", sizes.shared_biases, "as the file has it")
    settings.agree("pre_norm", sizes.norm_first, "as the file has it")
    if sizes.head_dim * heads != hidden:
        settings.problem("the number of heads", f"a divisor of the hidden size {hidden}", str(heads))
    return sizes


def _visible(settings: Settings, rows: int, problems: list[Problem], notes: list[str]) -> tuple[int, int | None]:
    """Window and segment: M + 1 keys, the token itself included; without same_length, one more for each earlier token of the segment."""
    before = len(problems)
    memory = settings.integer("mem_length")
    same_length = settings.boolean("same_length")
    segment = None
    if settings.has("same_length") and not same_length:
        segment = settings.integer("seq_length", least=1)
        notes.append(
            f"same_length is false: segments of {segment} tokens; the published trainers set it true whatever the configuration says"
        )
    reach = memory + (segment or 1)
    if len(problems) == before and rows and reach > rows:
        what = "mem_length + 1" if segment is None else "mem_length + seq_length"
        problems.append(Problem(what, f"at most {rows}, the rows of pos_emb", str(reach)))
    return memory + 1, segment


def _layer(source: SourceTensors, index: int, sizes: _Sizes) -> dict[str, np.ndarray]:
    prefix, d = f"layers.{index}.", sizes.hidden
    weights: dict[str, np.ndarray] = {}
    norm = "norm" if sizes.norm_first else "projection.norm"
    weights["attention_norm"] = source.take(f"{prefix}{norm}.weight.data", (d,))
    weights["attention_norm_bias"] = source.take(f"{prefix}{norm}.bias.data", (d,))
    for ours, theirs in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("relative", "r_proj")):
        weights[f"attention.{ours}"] = source.take(f"{prefix}attn.{theirs}.weight.data", (d, d))
        if sizes.bias:
            weights[f"attention.{ours}_bias"] = source.take(f"{prefix}attn.{theirs}.bias.data", (d,))
    for ours, shared, own in (("content_bias", "rel_query_bias", "r_query_bias"), ("position_bias", "rel_pos_bias", "r_pos_bias")):
        bias = source.take(f"{shared}.data" if sizes.shared_biases else f"{prefix}attn.{own}.data", (d,))
        if d == sizes.heads * sizes.head_dim:
            weights[f"attention.{ours}"] = bias.reshape(sizes.heads, sizes.head_dim)
    if sizes.persistent:
        shape = (1, sizes.heads, sizes.persistent, sizes.head_dim)
        weights["attention.persistent_keys"] = source.take(f"{prefix}attn.mem_k.data", shape)[0]
        weights["attention.persistent_values"] = source.take(f"{prefix}attn.mem_v.data", shape)[0]
    weights["attention.output"] = source.take(f"{prefix}projection.linear.weight.data", (d, d))
    weights["attention.output_bias"] = source.take(f"{prefix}projection.linear.bias.data", (d,))
    return weights


def _kept(source: SourceTensors, index: int, sizes: _Sizes) -> tuple[int, ...]:
    """Heads whose gate is open at evaluation: hard sigmoid ≥ 1/2 exactly when alpha ≥ 0; all of them in files without gates."""
    if not sizes.gated:
        return tuple(range(sizes.heads))
    gate = source.take(f"layers.{index}.attn.gate.gate.data", (sizes.heads,))
    return tuple(head for head in range(sizes.heads) if gate[head] >= 0)


def _scales(given: Any, kept: Sequence[Sequence[int]], heads: int, problems: list[Problem]) -> tuple[tuple[float, ...], ...] | None:
    """output_scale: one number, one per layer, or one list per layer with a number per source head → a number per kept head."""
    if given is None:
        return None
    per_layer = [given] * len(kept) if _is_number(given) else given
    expected = f"a number, {len(kept)} numbers (one per layer), or {len(kept)} lists of {heads} numbers"
    if not isinstance(per_layer, (list, tuple)) or len(per_layer) != len(kept):
        problems.append(Problem("option output_scale", expected, repr(given)[:60]))
        return None
    rows = [[item] * heads if _is_number(item) else item for item in per_layer]
    if not all(isinstance(row, (list, tuple)) and len(row) == heads and all(map(_is_number, row)) for row in rows):
        problems.append(Problem("option output_scale", expected, repr(given)[:60]))
        return None
    return tuple(tuple(float(row[head]) for head in heads_kept) for row, heads_kept in zip(rows, kept, strict=True))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30 and math.isfinite(value)
