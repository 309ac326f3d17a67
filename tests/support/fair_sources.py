"""Random FAIR state dicts with any option, and their forward pass in float64, written from the papers: blocks over caches of hidden rows.

Keys, logits and the mask are laid out by column, as the program lays them out (arXiv 1905.07799, 1907.01470). Nothing is shared with the
engine.
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
class FairOptions:
    """One model; z: adaptive span ratios per layer and head, None = off; cutoffs: adaptive input and output, None = plain."""

    layers: int = 2
    hidden: int = 24
    heads: int = 3
    span: int = 40
    vocab: int = 37
    persistent: int = 0
    inner: int = 20
    z: tuple[tuple[float, ...], ...] | None = None
    ramp: int = 8
    cutoffs: tuple[int, ...] | None = None
    div_value: int = 2
    tied: bool = True
    seed: int = 0


def fair_source(o: FairOptions) -> tuple[Tensors, dict[str, Any]]:
    """(state dict with the wrapper's prefix removed, command-line values)."""
    rng = np.random.default_rng(o.seed)
    dim = o.hidden // o.heads

    def draw(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    tensors: Tensors = {"key_pe": draw(1, dim, o.span)}
    tensors.update(_vocabulary(o, draw))
    for index in range(o.layers):
        p = f"layers.{index}."
        for name in ("query", "key", "val", "out"):
            tensors[f"{p}attn.proj_{name}.weight"] = draw(o.hidden, o.hidden, scale=1.5 / math.sqrt(o.hidden))
        places = [f"{p}attn.attn.adaptive_span._mask."] if o.z is not None else []
        if o.persistent:
            memory = f"{p}attn.attn.persistent_memory."
            tensors[f"{memory}key"] = draw(o.heads, dim, o.persistent, scale=1 / math.sqrt(dim))
            tensors[f"{memory}val"] = draw(o.heads, o.persistent, dim, scale=1 / math.sqrt(o.persistent))
            places += [f"{memory}adaptive_span._mask."] if o.z is not None else []
        else:
            tensors[f"{p}ff.fc1.weight"], tensors[f"{p}ff.fc1.bias"] = draw(o.inner, o.hidden, scale=0.3), draw(o.inner)
            tensors[f"{p}ff.fc2.weight"], tensors[f"{p}ff.fc2.bias"] = draw(o.hidden, o.inner, scale=0.3), draw(o.hidden)
        for place in places:
            assert o.z is not None
            tensors[f"{place}current_val"] = np.array(o.z[index], np.float32).reshape(o.heads, 1, 1)
            tensors[f"{place}mask_template"] = np.arange(1 - o.span, 1, dtype=np.float32)
        for norm in ("norm1",) if o.persistent else ("norm1", "norm2"):
            tensors[f"{p}{norm}.weight"], tensors[f"{p}{norm}.bias"] = 1 + draw(o.hidden, scale=0.2), draw(o.hidden, scale=0.2)
    args = {"nlayers": o.layers, "hid_sz": o.hidden, "nheads": o.heads, "attn_span": o.span, "block_sz": 16, "inner_hid_sz": o.inner}
    args |= {"pers_mem_size": o.persistent, "adapt_span": o.z is not None, "adapt_span_ramp": o.ramp, "adapt_span_cache": True}
    args |= {"adapt_io": o.cutoffs is not None, "adapt_io_cutoffs": list(o.cutoffs or (20000, 40000, 200000))}
    return tensors, args | {"adapt_io_divval": o.div_value, "adapt_io_tied": o.tied and o.cutoffs is not None, "dropout": 0.3, "lr": 0.01}


def _vocabulary(o: FairOptions, draw: Any) -> Tensors:
    if o.cutoffs is None:
        return {"in_emb.weight": draw(o.vocab, o.hidden), "out_emb.weight": draw(o.vocab, o.hidden), "out_emb.bias": draw(o.vocab)}
    tensors: Tensors = {}
    edges = [0, *o.cutoffs, o.vocab]
    for c, (start, stop) in enumerate(pairwise(edges)):
        width = o.hidden // o.div_value**c
        rows, projection = draw(stop - start, width, scale=1 / math.sqrt(width)), draw(o.hidden, width, scale=1 / math.sqrt(o.hidden))
        tensors[f"in_emb.emb_layers.{c}.weight"], tensors[f"in_emb.emb_projs.{c}"] = rows, projection
        tensors[f"out_emb.out_layers.{c}.weight"] = rows.copy() if o.tied else draw(stop - start, width)
        tensors[f"out_emb.out_projs.{c}"] = projection.copy() if o.tied else draw(o.hidden, width, scale=1 / math.sqrt(o.hidden))
        tensors[f"out_emb.out_layers.{c}.bias"] = draw(stop - start)
    tensors["out_emb.cluster_proj.weight"] = draw(len(o.cutoffs), o.hidden)
    tensors["out_emb.cluster_proj.bias"] = draw(len(o.cutoffs))
    return tensors


def fair_log_probs(
    tensors: Mapping[str, np.ndarray],
    args: Mapping[str, Any],
    ids: Sequence[int],
    block: int = 16,
    *,
    phantoms: bool = True,
    epsilon: float = 1e-8,
) -> np.ndarray:
    """log p(next | ids[: t + 1]) [T, vocab] in float64; ids one block at a time, caches of raw hidden rows between them.

    Two planted faults: phantoms=False leaves the zero rows before the start out of the softmax, epsilon=0 renormalises without it.
    """
    w = {name: np.asarray(array, np.float64) for name, array in tensors.items()}
    span, layers = w["key_pe"].shape[2], args["nlayers"]
    hidden = w["layers.0.norm1.weight"].shape[0]
    caches = [np.zeros((span, hidden)) for _ in range(layers)]
    parts = []
    for begin in range(0, len(ids), block):
        h = _embed(w, ids[begin : begin + block])  # [T, hidden]
        for index in range(layers):
            everything = np.concatenate((caches[index], h))
            caches[index] = everything[-span:]
            h = _fair_layer(w, args, f"layers.{index}.", h, everything, begin if not phantoms else span, epsilon)
        parts.append(_output(w, h))
    return np.concatenate(parts)


def _fair_layer(
    w: Tensors, args: Mapping[str, Any], p: str, h: np.ndarray, everything: np.ndarray, real: int, epsilon: float
) -> np.ndarray:
    """`real` rows of the cache may be seen."""
    length, dim, span = len(h), w["key_pe"].shape[1], w["key_pe"].shape[2]
    mask = w.get(f"{p}attn.attn.adaptive_span._mask.current_val")
    memory_keys = w.get(f"{p}attn.attn.persistent_memory.key")
    near = span if mask is None else _trimmed(mask, span, args["adapt_span_ramp"])
    heads = []
    for head in range(h.shape[1] // dim):
        rows = slice(head * dim, (head + 1) * dim)
        q = h @ w[f"{p}attn.proj_query.weight"][rows].T
        k = everything @ w[f"{p}attn.proj_key.weight"][rows].T
        v = everything @ w[f"{p}attn.proj_val.weight"][rows].T
        first = len(everything) - length - near  # of the keys row 0 sees; column j of row i is key first + i + j, at distance near - j
        seen = first + np.arange(length)[:, None] + np.arange(near)[None, :]  # [T, near]
        logits = np.einsum("td,tjd->tj", q, k[seen]) + q @ w["key_pe"][0, :, span - near :]
        logits = np.where(seen >= len(everything) - length - real, logits, -1e30)
        if memory_keys is not None:
            logits = np.concatenate((logits, q @ (memory_keys[head] * math.sqrt(dim))), axis=1)
        shares = _softmax(logits / math.sqrt(dim))
        if mask is not None:
            template = np.arange(1 - near, 1.0)
            reach = float(
                np.float32(mask[head, 0, 0]) * np.float32(span)
            )  # the program's float32: its last bit decides what the ramp ends on
            shares[:, :near] *= np.clip((template + reach) / args["adapt_span_ramp"] + 1, 0, 1)
            shares /= shares.sum(1, keepdims=True) + epsilon
        out = np.einsum("tj,tjd->td", shares[:, :near], v[seen])
        if memory_keys is not None:
            values = w[f"{p}attn.attn.persistent_memory.val"][head]
            out = out + shares[:, near:] @ (values * math.sqrt(len(values)))
        heads.append(out)
    h = _norm(w, f"{p}norm1", h + np.concatenate(heads, axis=1) @ w[f"{p}attn.proj_out.weight"].T)
    if memory_keys is not None:
        return h
    inner = np.maximum(h @ w[f"{p}ff.fc1.weight"].T + w[f"{p}ff.fc1.bias"], 0)
    return _norm(w, f"{p}norm2", h + inner @ w[f"{p}ff.fc2.weight"].T + w[f"{p}ff.fc2.bias"])


def _trimmed(mask: np.ndarray, span: int, ramp: int) -> int:
    widest = max(0, min(span, math.ceil(float(mask.max()) * span) + ramp))
    return span - 64 * (min(span - 1, span - widest) // 64)


def _embed(w: Tensors, ids: Sequence[int]) -> np.ndarray:
    if "in_emb.weight" in w:
        return w["in_emb.weight"][list(ids)]
    tables = [w[f"in_emb.emb_layers.{c}.weight"] @ w[f"in_emb.emb_projs.{c}"].T for c in range(_clusters(w))]
    rows = np.concatenate(tables)[list(ids)]
    return rows * math.sqrt(rows.shape[1])


def _clusters(w: Tensors) -> int:
    return sum(name.startswith("in_emb.emb_layers.") for name in w)


def _output(w: Tensors, h: np.ndarray) -> np.ndarray:
    if "out_emb.weight" in w:
        return _log_softmax(h @ w["out_emb.weight"].T + w["out_emb.bias"])
    logits = []
    for c in range(_clusters(w)):
        projected = h @ w[f"out_emb.out_projs.{c}"]
        weight, bias = w[f"out_emb.out_layers.{c}.weight"], w[f"out_emb.out_layers.{c}.bias"]
        if c == 0:
            weight = np.concatenate((weight, w["out_emb.cluster_proj.weight"]))
            bias = np.concatenate((bias, w["out_emb.cluster_proj.bias"]))
        logits.append(_log_softmax(projected @ weight.T + bias))
    head, tails = logits[0], logits[1:]
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
