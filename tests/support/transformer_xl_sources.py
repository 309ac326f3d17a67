"""Random Transformer-XL state dicts with any option, and their forward pass in float64, written from the paper: segments over memories.

Memories hold raw hidden rows, begin with none, and keep mem_len of them at most (arXiv 1901.02860); nothing is shared with the engine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class TransformerXLOptions:
    """One model. tie_projs: per cluster whether input and output share the projection."""

    layers: int = 2
    hidden: int = 24
    heads: int = 3
    head_dim: int = 8
    inner: int = 20
    vocab: int = 37
    embed: int | None = None
    div_val: int = 1
    cutoffs: tuple[int, ...] = ()
    tie_weight: bool = True
    tie_projs: tuple[bool, ...] = (False,)
    pre_lnorm: bool = False
    same_length: bool = True
    clamp_len: int = -1
    mem_len: int = 12
    tgt_len: int = 7
    seed: int = 0


def transformer_xl_source(o: TransformerXLOptions) -> tuple[Tensors, dict[str, Any]]:
    """(state dict, arguments)."""
    rng = np.random.default_rng(o.seed)

    def draw(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    d, rows = o.hidden, o.heads * o.head_dim
    tensors: Tensors = {"r_w_bias": draw(o.heads, o.head_dim, scale=0.5), "r_r_bias": draw(o.heads, o.head_dim, scale=0.5)}
    tensors["pos_emb.inv_freq"] = (1 / 10000 ** (np.arange(0, d, 2) / d)).astype(np.float32)
    tensors.update(_vocabulary(o, draw))
    for index in range(o.layers):
        p = f"layers.{index}."
        tensors[f"{p}dec_attn.qkv_net.weight"] = draw(3 * rows, d, scale=1.5 / math.sqrt(d))
        tensors[f"{p}dec_attn.r_net.weight"] = draw(rows, d, scale=1.5 / math.sqrt(d))
        tensors[f"{p}dec_attn.o_net.weight"] = draw(d, rows, scale=1.5 / math.sqrt(d))
        norms = ["dec_attn"]
        if o.inner:
            tensors[f"{p}pos_ff.CoreNet.0.weight"], tensors[f"{p}pos_ff.CoreNet.0.bias"] = draw(o.inner, d, scale=0.3), draw(o.inner)
            tensors[f"{p}pos_ff.CoreNet.3.weight"], tensors[f"{p}pos_ff.CoreNet.3.bias"] = draw(d, o.inner, scale=0.3), draw(d)
            norms.append("pos_ff")
        for norm in norms:
            tensors[f"{p}{norm}.layer_norm.weight"] = 1 + draw(d, scale=0.2)
            tensors[f"{p}{norm}.layer_norm.bias"] = draw(d, scale=0.2)
    args = {"n_layer": o.layers, "n_head": o.heads, "d_model": d, "d_head": o.head_dim, "d_inner": o.inner, "n_token": o.vocab}
    args |= {"d_embed": o.embed or d, "div_val": o.div_val, "cutoffs": list(o.cutoffs), "tie_weight": o.tie_weight}
    args |= {"tie_projs": list(o.tie_projs), "pre_lnorm": o.pre_lnorm, "same_length": o.same_length, "clamp_len": o.clamp_len}
    return tensors, args | {"mem_len": o.mem_len, "tgt_len": o.tgt_len, "ext_len": 0, "attn_type": 0, "dropout": 0.1, "seed": 1111}


def _vocabulary(o: TransformerXLOptions, draw: Any) -> Tensors:
    tensors: Tensors = {}
    embed, edges = o.embed or o.hidden, [0, *o.cutoffs, o.vocab]
    single = o.div_val == 1
    sizes = [o.vocab] if single else [stop - start for start, stop in pairwise(edges)]
    for c, size in enumerate(sizes):
        width = embed // o.div_val**c
        rows, others = (draw(size, width, scale=1 / math.sqrt(width)) for _ in range(2))
        tensors[f"word_emb.emb_layers.{c}.weight"], tensors[f"crit.out_layers.{c}.weight"] = rows, rows.copy() if o.tie_weight else others
        tensors[f"crit.out_layers.{c}.bias"] = draw(size)
        if not single or embed != o.hidden:
            tensors[f"word_emb.emb_projs.{c}"] = draw(o.hidden, width, scale=1 / math.sqrt(o.hidden))
    for c in range(len(edges) - 1):
        if not single or embed != o.hidden:
            of_input = tensors[f"word_emb.emb_projs.{0 if single else c}"]
            tied = c < len(o.tie_projs) and o.tie_projs[c]
            tensors[f"crit.out_projs.{c}"] = of_input.copy() if tied else draw(*of_input.shape, scale=1 / math.sqrt(o.hidden))
    if o.cutoffs:
        tensors["crit.cluster_weight"], tensors["crit.cluster_bias"] = draw(len(o.cutoffs), embed), draw(len(o.cutoffs))
    return tensors


def transformer_xl_log_probs(
    tensors: Mapping[str, np.ndarray],
    args: Mapping[str, Any],
    ids: Sequence[int],
    segment: int | None = None,
    *,
    zero_start: bool = False,
) -> np.ndarray:
    """log p(next | ids[: t + 1]) [T, vocab] in float64, in segments of tgt_len tokens unless said otherwise.

    A planted fault: zero_start begins with mem_len rows of zeros, as other dialects do.
    """
    w = {name: np.asarray(array, np.float64) for name, array in tensors.items()}
    size = segment or args["tgt_len"]
    memories = [np.zeros((args["mem_len"] if zero_start else 0, args["d_model"])) for _ in range(args["n_layer"])]
    parts = []
    for begin in range(0, len(ids), size):
        h = _embed(w, args, ids[begin : begin + size])  # [T, hidden]
        for index in range(args["n_layer"]):
            both = np.concatenate((memories[index], h))
            memories[index] = both[len(both) - min(len(both), args["mem_len"]) :]
            h = _transformer_xl_layer(w, args, f"layers.{index}.", h, both)
        parts.append(_output(w, args, h))
    return np.concatenate(parts)


def _transformer_xl_layer(w: Tensors, args: Mapping[str, Any], p: str, h: np.ndarray, both: np.ndarray) -> np.ndarray:
    heads, dim, before = args["n_head"], args["d_head"], len(both) - len(h)
    read = _norm(w, f"{p}dec_attn.layer_norm", both) if args["pre_lnorm"] else both
    stacked = (read @ w[f"{p}dec_attn.qkv_net.weight"].T).reshape(len(both), 3, heads, dim)
    q, k, v = stacked[before:, 0], stacked[:, 1], stacked[:, 2]
    distance = (np.arange(len(h)) + before)[:, None] - np.arange(len(both))[None, :]  # [T, S]
    visible = (distance >= 0) & ((distance < args["mem_len"]) if args["same_length"] else True)
    turned = np.maximum(distance, 0)
    turned = np.minimum(turned, args["clamp_len"]) if args["clamp_len"] > 0 else turned
    angles = turned[..., None] * w["pos_emb.inv_freq"]
    relative = np.concatenate((np.sin(angles), np.cos(angles)), axis=-1) @ w[f"{p}dec_attn.r_net.weight"].T  # [T, S, heads · dim]
    relative = relative.reshape(*distance.shape, heads, dim)
    scores = np.einsum("thd,shd->hts", q + w["r_w_bias"], k) + np.einsum("thd,tshd->hts", q + w["r_r_bias"], relative)
    shares = _softmax(np.where(visible, scores / math.sqrt(dim), -np.inf))
    attended = np.einsum("hts,shd->thd", shares, v).reshape(len(h), -1) @ w[f"{p}dec_attn.o_net.weight"].T
    if args["pre_lnorm"]:
        h = h + attended
        return h + _feed_forward(w, p, _norm(w, f"{p}pos_ff.layer_norm", h)) if args["d_inner"] else h
    h = _norm(w, f"{p}dec_attn.layer_norm", h + attended)
    return _norm(w, f"{p}pos_ff.layer_norm", h + _feed_forward(w, p, h)) if args["d_inner"] else h


def _feed_forward(w: Tensors, p: str, x: np.ndarray) -> np.ndarray:
    inner = np.maximum(x @ w[f"{p}pos_ff.CoreNet.0.weight"].T + w[f"{p}pos_ff.CoreNet.0.bias"], 0)
    return inner @ w[f"{p}pos_ff.CoreNet.3.weight"].T + w[f"{p}pos_ff.CoreNet.3.bias"]


def _embed(w: Tensors, args: Mapping[str, Any], ids: Sequence[int]) -> np.ndarray:
    tables, c = [], 0
    while f"word_emb.emb_layers.{c}.weight" in w:
        rows, projection = w[f"word_emb.emb_layers.{c}.weight"], w.get(f"word_emb.emb_projs.{c}")
        tables.append(rows if projection is None else rows @ projection.T)
        c += 1
    return np.concatenate(tables)[list(ids)] * math.sqrt(args["d_model"])


def _output(w: Tensors, args: Mapping[str, Any], h: np.ndarray) -> np.ndarray:
    edges = [0, *args["cutoffs"], args["n_token"]]
    parts = []
    for c, (start, stop) in enumerate(pairwise(edges)):
        of, rows = (0, slice(start, stop)) if args["div_val"] == 1 else (c, slice(None))
        weight, bias = w[f"crit.out_layers.{of}.weight"][rows], w[f"crit.out_layers.{of}.bias"][rows]
        projection = w.get(f"crit.out_projs.{c}")
        z = h if projection is None else h @ projection
        if c == 0 and args["cutoffs"]:
            weight, bias = np.concatenate((weight, w["crit.cluster_weight"])), np.concatenate((bias, w["crit.cluster_bias"]))
        parts.append(_log_softmax(z @ weight.T + bias))
    head, tails = parts[0], parts[1:]
    if not tails:
        return head
    return np.concatenate([head[:, : -len(tails)], *(head[:, -c, None] + tail for c, tail in enumerate(tails, start=1))], axis=1)


def _log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def _norm(w: Tensors, name: str, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]
