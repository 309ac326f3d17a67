"""One layer's attention over a memory of hidden rows, one query row and one head at a time.

All-attention and its pruning arXiv 2110.03252, persistent memory arXiv 1907.01470, adaptive span arXiv 1905.07799, Transformer-XL
arXiv 1901.02860. Rows of the memory are projected anew for every segment, exactly like the segment's own rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tests.oracle.parts import Weights, linear


def attend(
    a: Mapping[str, Any], weights: Weights, prefix: str, memory: Sequence[np.ndarray], rows: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """The attention output [hidden] of each of `rows`; `memory` are the rows before them, both as the layer's projections read them."""
    if not a["causal"]:
        raise NotImplementedError("the oracle knows causal attention only")
    heads, dim = len(a["kept"]), a["head_dim"]
    hidden = rows[0].shape[0]
    outputs = []
    if heads:
        stream = [*memory, *rows]
        keys = np.array([linear(weights, f"{prefix}.key", row).reshape(-1, dim) for row in stream])  # [stream, kv_heads, dim]
        values = np.array([linear(weights, f"{prefix}.value", row).reshape(-1, dim) for row in stream])
        relative = _distance_rows(a, weights, prefix, len(stream), hidden)
    for index, row in enumerate(rows):
        out = np.zeros(hidden, row.dtype)
        if heads:
            query = linear(weights, f"{prefix}.query", row).reshape(heads, dim)
            place = len(memory) + index  # of the row in the stream
            distances = _visible(a, place)
            back = [place - distance for distance in distances]
            mixed = []
            for h in range(heads):
                kv = a["kv_of"][h]
                by_distance = None if relative is None else np.array([relative[distance][h] for distance in distances])
                mixed.append(_head(a, weights, prefix, h, query[h], distances, keys[back, kv], values[back, kv], by_distance))
            out = weights[f"{prefix}.output"] @ np.concatenate(mixed)
        outputs.append(out + weights[f"{prefix}.output_bias"] if a["output_bias"] else out)
    return outputs


def _visible(a: Mapping[str, Any], place: int) -> list[int]:
    """Distances from the row at `place` of the stream to the rows it sees: a sliding window, or all of memory and segment."""
    first = 0 if a["sees_self"] else 1
    last = place if a["segment"] else min(place, first + a["window"] - 1)
    return list(range(first, last + 1))


def _head(
    a: Mapping[str, Any],
    weights: Weights,
    prefix: str,
    h: int,
    query: np.ndarray,
    distances: Sequence[int],
    keys: np.ndarray,
    values: np.ndarray,
    by_distance: np.ndarray | None,
) -> np.ndarray:
    """One head of one row: query [dim] against the visible keys, values and relative rows [distances, dim], and the persistent vectors."""
    root = np.sqrt(query.dtype.type(a["head_dim"]))
    content = position = query
    if a["position"] is not None and a["position"]["kind"] in ("Table", "Sinusoid"):
        content = query + weights[f"{prefix}.content_bias"][h]
        position = query + weights[f"{prefix}.position_bias"][h]
    logits = keys @ content
    if by_distance is not None:
        logits = logits + by_distance @ position
    logits = logits / root
    if a["persistent"]:
        logits = np.concatenate((logits, weights[f"{prefix}.persistent_keys"][h] @ query))
        values = np.concatenate((values, weights[f"{prefix}.persistent_values"][h] * np.sqrt(query.dtype.type(a["persistent"]))))
    shares = np.exp(logits - logits.max())
    shares = shares / shares.sum()
    if a["spans"] is not None:
        for place, distance in enumerate(distances):
            shares[place] *= _soft_mask(distance, a["spans"][h], a["span_ramp"])
        shares = shares / (shares.sum() + query.dtype.type(1e-8))
    out = shares @ values
    return out * weights[f"{prefix}.head_scale"][h] if a["scaled"] else out


def _soft_mask(distance: int, span: float, ramp: int) -> float:
    return min(1.0, max(0.0, (1 - distance + span) / ramp + 1))


def _distance_rows(a: Mapping[str, Any], weights: Weights, prefix: str, count: int, hidden: int) -> dict[int, np.ndarray] | None:
    """What the heads score each distance below `count` by, [heads, head_dim], as far as the model has rows; None without positions."""
    if a["position"] is None:
        return None
    if f"{prefix}.distances" in weights:  # formed, and rounded, before: [heads or 1, rows, head_dim]
        formed, first = weights[f"{prefix}.distances"], 0 if a["sees_self"] else 1
        return {first + i: np.broadcast_to(formed[:, i], (len(a["kept"]), a["head_dim"])) for i in range(formed.shape[1])}
    kind, heads, dim = a["position"]["kind"], len(a["kept"]), a["head_dim"]
    first = 0 if a["sees_self"] else 1
    rows = {}
    for distance in range(first, count):
        if kind == "Sinusoid":
            clamp = a["position"]["clamp"]
            angles = weights["position.frequencies"] * (distance if clamp is None else min(distance, clamp))
            row = np.concatenate((np.sin(angles), np.cos(angles)))
        elif kind in ("Table", "SharedTable"):
            if distance - first >= a["position"]["rows"]:
                break
            row = weights["position.table"][distance - first]
        else:
            raise NotImplementedError(f"the oracle knows no {kind} positions")
        rows[distance] = (
            np.tile(row, (heads, 1)) if kind == "SharedTable" else linear(weights, f"{prefix}.relative", row).reshape(heads, dim)
        )
    return rows
