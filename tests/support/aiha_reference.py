"""What an aiha-lab state dict computes, in float64 from the formulas of S1's repository: segments that carry hidden states as memory.

Written apart from the engine and its spec: gates multiply dense heads, memory is re-projected, positions are looked up row by row.
"""

from __future__ import annotations

import numpy as np

from tests.support.sources import AihaSource

State = dict[str, np.ndarray]


def log_probs(source: AihaSource, ids: np.ndarray, *, scale: np.ndarray | None = None, state: State | None = None) -> np.ndarray:
    """ids [T] → log p(next | ids[:t+1]) [T, vocab]; scale [layers, heads] multiplies head outputs (0 removes a head)."""
    s = {name: array.astype(np.float64) for name, array in (state or source.state()).items()}
    memories = [np.zeros((source.mem_length, source.hidden_dim)) for _ in range(source.num_layers)]
    rows = []
    for start in range(0, len(ids), source.seq_length):
        hidden = _embed(source, s, ids[start : start + source.seq_length])
        for layer in range(source.num_layers):
            past = memories[layer]
            memories[layer] = np.concatenate([past, hidden])[len(hidden) :]
            factors = np.ones(source.num_heads) if scale is None else scale[layer]
            if (gate := s.get(f"layers.{layer}.attn.gate.gate.data")) is not None:
                factors = factors * (1.2 / (1 + np.exp(-gate)) - 0.1 >= 0.5)
            hidden = _layer(source, s, layer, hidden, past, factors)
        rows.append(_softmax(source, s, hidden))
    return np.concatenate(rows)


def _layer(source: AihaSource, s: State, layer: int, hidden: np.ndarray, past: np.ndarray, factors: np.ndarray) -> np.ndarray:
    p, d, m = f"layers.{layer}.", source.hidden_dim, source.mem_length
    dh, total = d // source.num_heads, len(past) + len(hidden)
    inputs = np.concatenate([past, hidden])
    if source.pre_norm:
        inputs = _norm(inputs, s[f"{p}norm.weight.data"], s[f"{p}norm.bias.data"])

    def project(name: str, x: np.ndarray) -> np.ndarray:
        return x @ s[f"{p}attn.{name}_proj.weight.data"].T + s.get(f"{p}attn.{name}_proj.bias.data", 0.0)

    q, k, v = project("q", inputs[len(past) :]), project("k", inputs), project("v", inputs)
    r = project("r", s["pos_emb.data"][0, source.max_len - total :])  # the last row is distance 0
    u = s["rel_query_bias.data"] if source.share_r_bias else s[f"{p}attn.r_query_bias.data"]
    w = s["rel_pos_bias.data"] if source.share_r_bias else s[f"{p}attn.r_pos_bias.data"]
    heads = np.zeros_like(hidden)
    for h in range(source.num_heads):
        part = slice(h * dh, (h + 1) * dh)
        for i in range(len(hidden)):
            distances = (i + m) - np.arange(total)
            visible = (distances >= 0) & ((distances <= m) | (not source.same_length))
            content = k[:, part] @ (q[i, part] + u[part])
            position = np.array([r[total - 1 - max(distance, 0), part] @ (q[i, part] + w[part]) for distance in distances])
            logits = np.where(visible, (content + position) / np.sqrt(dh), -np.inf)
            values = v[:, part]
            if source.feedforward_dim:
                logits = np.concatenate([logits, s[f"{p}attn.mem_k.data"][0, h] @ q[i, part]])  # no bias, no scale
                values = np.concatenate([values, np.sqrt(source.feedforward_dim) * s[f"{p}attn.mem_v.data"][0, h]])
            weights = np.exp(logits - logits.max())
            heads[i, part] = factors[h] * (weights / weights.sum()) @ values
    out = hidden + heads @ s[f"{p}projection.linear.weight.data"].T + s[f"{p}projection.linear.bias.data"]
    if source.pre_norm:
        return out
    return _norm(out, s[f"{p}projection.norm.weight.data"], s[f"{p}projection.norm.bias.data"])


def _norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * (1 + weight) + bias


def _clusters(source: AihaSource) -> list[tuple[str, int, int]]:
    edges = [0, *source.cutoffs, source.vocab]
    names = ["shortlist", *(f"tail.{index}" for index in range(len(source.cutoffs)))]
    return list(zip(names, edges, edges[1:], strict=False))


def _embed(source: AihaSource, s: State, ids: np.ndarray) -> np.ndarray:
    if not source.cutoffs:
        return s["word_emb.weight.data"][ids] * np.sqrt(source.hidden_dim)
    rows = []
    for token in ids:
        ((name, start, _),) = [cluster for cluster in _clusters(source) if cluster[1] <= token < cluster[2]]
        row = s[f"word_emb.{name}.0.weight.data"][token - start]
        rows.append(row if source.div_value == 1 else s[f"word_emb.{name}.1.weight.data"] @ row)
    return np.array(rows) * np.sqrt(source.hidden_dim)


def _softmax(source: AihaSource, s: State, hidden: np.ndarray) -> np.ndarray:
    if not source.cutoffs:
        return _log_softmax(hidden @ s["criterion.project.weight.data"].T + s["criterion.project.bias.data"])
    parts = []
    for index, (name, _, _) in enumerate(_clusters(source)):
        place, x = f"criterion.{name}.0", hidden
        if source.div_value != 1:
            stored = s[f"{place}.weight.data"]
            x = hidden @ (stored if source.tie_proj and index > 0 else stored.T)
            place = f"criterion.{name}.1"
        parts.append(x @ s[f"{place}.weight.data"].T + s[f"{place}.bias.data"])
    entries = hidden @ s["criterion.cluster.weight.data"].T + s["criterion.cluster.bias.data"]
    head = _log_softmax(np.concatenate([parts[0], entries], -1))
    words = parts[0].shape[-1]
    tails = [head[:, words + index, None] + _log_softmax(tail) for index, tail in enumerate(parts[1:])]
    return np.concatenate([head[:, :words], *tails], -1)


def _log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))
