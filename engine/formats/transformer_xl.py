"""Transformer-XL checkpoints → Checkpoint (arXiv 1901.02860; kimiyoung/transformer-xl, pytorch/mem_transformer.py, attn_type 0).

Layers of relative attention and a feed-forward, pre- or post-norm, over a memory that starts empty. A state dict gives the sizes.
pre_lnorm, same_length, clamp_len, mem_len, tgt_len (without same_length) and the cutoffs of a vocabulary with div_val 1 come from
args.json or options; each is an error where nothing gives it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.checkpoint import Checkpoint
from engine.errors import ConversionError, Problem
from engine.formats.base import Converted, Converter, Settings, SourceTensors, refuse
from engine.formats.flags import flat_flags, report_unknown
from engine.formats.transformer_xl_vocabulary import read_vocabulary
from engine.formats.vocabulary import build
from engine.spec import AttentionSpec, FeedForward, LayerSpec, ModelSpec, Sinusoid

NORM_EPS = 1e-5
MAX_KEYS = 1 << 17  # nothing in the file bounds the memory: a longer one is a slip, and would take gigabytes of caches
FLAGS = (
    *("n_layer", "n_head", "d_model", "d_head", "d_inner", "d_embed", "n_token", "div_val", "cutoffs", "tie_weight", "tie_projs"),
    *("pre_lnorm", "same_length", "clamp_len", "mem_len", "tgt_len", "ext_len", "attn_type"),
)
TRAINING = (  # arguments of train.py and eval.py without a meaning here
    *(
        "data",
        "dataset",
        "dropout",
        "dropatt",
        "init",
        "emb_init",
        "init_range",
        "emb_init_range",
        "init_std",
        "proj_init_std",
        "optim",
        "lr",
    ),
    *("mom", "scheduler", "warmup_step", "decay_rate", "lr_min", "clip", "clip_nonemb", "max_step", "batch_size", "batch_chunk"),
    *("eval_tgt_len", "not_tied", "tied", "seed", "cuda", "adaptive", "varlen", "multi_gpu", "log_interval", "eval_interval", "work_dir"),
    *("restart", "restart_dir", "debug", "eta_min", "gpu0_bsz", "max_eval_steps", "sample_softmax", "patience", "finetune_v2"),
    *("finetune_v3", "fp16", "static_loss_scale", "dynamic_loss_scale", "n_all_param", "n_nonemb_param", "split", "no_log"),
)
LAYOUTS = {  # the end of a tensor's name → the layout it gives away, none of which is this one
    "r_bias": "attn_type 1 (learned positions, Shaw et al.)",
    "r_emb": "attn_type 1 or 3 (learned position embeddings)",
    "dec_attn.kv_net.weight": "attn_type 2 or 3 (absolute positions)",
    "dec_attn.r_w_bias": "the Hugging Face TransfoXL layout (biases per layer, another start and order of clusters)",
    "out_layer.weight": "a sampled softmax (sample_softmax > 0)",
}


@dataclass(frozen=True)
class _Sizes:
    """What the shapes say, each by the vote of every tensor that shows it."""

    layers: int
    hidden: int
    heads: int
    head_dim: int
    inner: int  # 0 = no feed-forward (d_inner 0)

    @property
    def rows(self) -> int:
        return self.heads * self.head_dim  # need not be the hidden size


@dataclass(frozen=True)
class _Lengths:
    """Which keys a token sees: `window`, and without same_length one more for each earlier token of its segment."""

    window: int
    segment: int | None
    clamp: int | None
    norm_first: bool


class TransformerXL(Converter):
    """Names and shapes of Transformer-XL state dicts, and what they mean."""

    name = "transformer-xl"
    config_names = ("args.json",)
    options = FLAGS

    def recognises(self, names: Sequence[str]) -> bool:
        return any(name.startswith(("layers.", "transformer.layers.")) and ".dec_attn." in name for name in names)

    def read(self, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any], options: Mapping[str, Any], path: Path) -> Converted:
        _refuse_other_layouts(list(tensors), path)
        problems: list[Problem] = []
        notes: list[str] = []
        source = SourceTensors(tensors, problems)
        flags = flat_flags(config, {}, "config", problems)
        unread = report_unknown(flags, FLAGS, TRAINING, problems, notes)
        if flags.get("d_embed") == -1:
            del flags["d_embed"]  # the default of train.py, which puts d_model in its place
        settings = Settings(flags, flat_flags(options, {}, "option", problems), problems, notes)
        settings.unknown_options(self.options)

        sizes = _sizes(source, settings)
        lengths = _lengths(settings, problems, notes)
        per_head = (sizes.heads, sizes.head_dim)
        biases = {ours: source.take(theirs, per_head) for ours, theirs in (("content_bias", "r_w_bias"), ("position_bias", "r_r_bias"))}
        weights = {"position.frequencies": _frequencies(source, sizes.hidden)}
        for index in range(sizes.layers):
            weights.update((f"layers.{index}.{name}", array) for name, array in _layer(source, index, sizes).items())
            weights.update((f"layers.{index}.attention.{name}", array) for name, array in biases.items())  # one pair for all layers
        inputs, outputs, entries = read_vocabulary(source, settings, sizes.hidden)
        source.finish()
        refuse(problems, self, path)

        embedding, head, tokens = build(inputs, outputs, entries, scale=math.sqrt(sizes.hidden))
        spec = ModelSpec(
            hidden=sizes.hidden,
            vocab=sum(cluster.size for cluster in embedding.clusters),
            layers=(_layer_spec(sizes, lengths),) * sizes.layers,
            embedding=embedding,
            head=head,
            task="causal_lm",
        )
        every = (tuple(range(sizes.heads)),) * sizes.layers
        return Converted(Checkpoint(spec, {**tokens, **weights}), every, None, notes, unread)


CONVERTER = TransformerXL()


def _refuse_other_layouts(names: Sequence[str], path: Path) -> None:
    """Raise ConversionError for the relatives of this format, by their name."""
    found = {layout for name in names for end, layout in LAYOUTS.items() if name == end or name.endswith(f".{end}")}
    if any(name.startswith("transformer.") for name in names):
        found.add("the Hugging Face TransfoXL layout (prefix transformer.)")
    if found:
        problem = Problem("file", "the layout of kimiyoung/transformer-xl with attn_type 0", " and ".join(sorted(found)))
        raise ConversionError(problem, source=path.name, hint="this Headcount converts attn_type 0 of the original repository only")


def _sizes(source: SourceTensors, settings: Settings) -> _Sizes:
    layers = source.count("layers.")
    if not layers:
        source.shape("layers.0.dec_attn.qkv_net.weight", 2)  # says that there is none
    names = [f"layers.{index}." for index in range(layers)]
    heads = source.size("the number of heads", [("r_w_bias", 2, 0), ("r_r_bias", 2, 0)])
    head_dim = source.size("the head size", [("r_w_bias", 2, 1), ("r_r_bias", 2, 1)])
    hidden = source.size("the hidden size", ((f"{name}dec_attn.{part}_net.weight", 2, 1) for name in names for part in ("qkv", "r")))
    inner = 0
    if any(name.split(".")[2:3] == ["pos_ff"] for name in source.names()):
        inner = source.size("the width of the feed-forward", ((f"{name}pos_ff.CoreNet.0.weight", 2, 0) for name in names))
    if hidden % 2:
        settings.problem("d_model", "an even number (sines and cosines in two halves)", str(hidden))
    settings.agree("n_layer", layers, "layers in the file")
    settings.agree("n_head", heads, "rows of r_w_bias")
    settings.agree("d_head", head_dim, "columns of r_w_bias")
    settings.agree("d_model", hidden, "the hidden size of the file")
    settings.agree("d_inner", inner, "the width of the feed-forward in the file")
    settings.agree("attn_type", 0, "the file has r_net")
    settings.agree("ext_len", 0, "an extended context is not supported")
    return _Sizes(layers, hidden, heads, head_dim, inner)


def _lengths(settings: Settings, problems: list[Problem], notes: list[str]) -> _Lengths:
    """same_length: M keys, the token itself included. Otherwise the first token of a segment sees the memory's M rows and itself."""
    norm_first = settings.boolean("pre_lnorm")
    clamp = settings.integer("clamp_len", least=-(2**31))
    before = len(problems)
    memory = settings.integer("mem_len")
    same_length = settings.boolean("same_length")
    segment = None
    if same_length and memory == 0 and len(problems) == before:
        settings.problem("mem_len", "1 or more with same_length (with 0 the source masks every key)", "0")
    elif not same_length and len(problems) == before:
        segment = settings.integer("tgt_len", least=1)
        notes.append(f"same_length is false: segments of {segment} tokens (tgt_len), each reading up to {memory} before it")
    window = max(memory, 1) if same_length else memory + 1
    if len(problems) == before and window + (segment or 1) - 1 > MAX_KEYS:
        settings.problem("mem_len" if segment is None else "mem_len + tgt_len", f"at most {MAX_KEYS}", str(memory + (segment or 0)))
    return _Lengths(window, segment, clamp if clamp > 0 else None, norm_first)


def _frequencies(source: SourceTensors, hidden: int) -> np.ndarray:
    """10000^(-2i / d), a buffer of the source; formed in float32 as the source does where the file lacks it."""
    stored = source.optional("pos_emb.inv_freq", (hidden // 2,))
    if stored is not None:
        return stored
    exponents = np.arange(0, hidden - hidden % 2, 2, dtype=np.float32) / np.float32(hidden)
    frequencies: np.ndarray = np.float32(1) / np.power(np.float32(10000), exponents)
    return frequencies


def _layer(source: SourceTensors, index: int, sizes: _Sizes) -> dict[str, np.ndarray]:
    prefix, d, rows = f"layers.{index}.", sizes.hidden, sizes.rows
    stacked = source.take(f"{prefix}dec_attn.qkv_net.weight", (3 * rows, d))  # queries, keys, values: rows each
    weights = {
        "attention_norm": source.take(f"{prefix}dec_attn.layer_norm.weight", (d,)),
        "attention_norm_bias": source.take(f"{prefix}dec_attn.layer_norm.bias", (d,)),
        "attention.query": stacked[:rows],
        "attention.key": stacked[rows : 2 * rows],
        "attention.value": stacked[2 * rows :],
        "attention.relative": source.take(f"{prefix}dec_attn.r_net.weight", (rows, d)),
        "attention.output": source.take(f"{prefix}dec_attn.o_net.weight", (d, rows)),
    }
    if sizes.inner:
        weights["feed_forward_norm"] = source.take(f"{prefix}pos_ff.layer_norm.weight", (d,))
        weights["feed_forward_norm_bias"] = source.take(f"{prefix}pos_ff.layer_norm.bias", (d,))
        for ours, theirs, shape in (("up", "0", (sizes.inner, d)), ("down", "3", (d, sizes.inner))):
            weights[f"feed_forward.{ours}"] = source.take(f"{prefix}pos_ff.CoreNet.{theirs}.weight", shape)
            weights[f"feed_forward.{ours}_bias"] = source.take(f"{prefix}pos_ff.CoreNet.{theirs}.bias", shape[:1])
    return weights


def _layer_spec(sizes: _Sizes, lengths: _Lengths) -> LayerSpec:
    attention = AttentionSpec(
        source_heads=sizes.heads,
        kept=tuple(range(sizes.heads)),
        kv_of=tuple(range(sizes.heads)),
        head_dim=sizes.head_dim,
        position=Sinusoid(clamp=lengths.clamp),
        persistent=0,
        causal=True,
        sees_self=True,
        window=lengths.window,
        segment=lengths.segment,
        start="empty",
        spans=None,
        span_ramp=None,
        bias=False,
        output_bias=False,
        scaled=False,
    )
    feed_forward = FeedForward(sizes.inner, activation="relu", gated=False, bias=True) if sizes.inner else None
    return LayerSpec(attention, feed_forward, norm="layer", norm_first=lengths.norm_first, norm_eps=NORM_EPS, norm_offset=0.0)
