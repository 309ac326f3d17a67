"""A whole model, segment by segment with a memory of hidden states per layer, as the published code runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.oracle.attention import attend
from tests.oracle.parts import Weights, embed, feed_forward, norm
from tests.oracle.vocabulary import log_probs


@dataclass(frozen=True)
class Answer:
    """log_probs [T, vocab]; streams [layers + 1, T, hidden]: the residual stream after the embedding and after each layer."""

    log_probs: np.ndarray
    streams: np.ndarray


def run(spec: Mapping[str, Any], weights: Weights, ids: Sequence[int], *, dtype: str = "float64", chunk: int | None = None) -> Answer:
    """One sequence from the start of its stream.

    spec is the JSON form of a ModelSpec, weights its stored tensors. dtype: float64 for the oracle itself; float32 makes the same loops a
    plain evaluation with its rounding. chunk: tokens at a time for a model without segments, whose answer must not depend on it.
    """
    weights = {name: np.asarray(array).astype(dtype) for name, array in weights.items()}
    rows = np.array([embed(spec, weights, int(token)) for token in ids], dtype)
    streams = [rows]
    for index, layer in enumerate(spec["layers"]):
        rows = run_layer(layer, weights, f"layers.{index}", rows, chunk)
        streams.append(rows)
    if spec["final_norm"]:
        rows = np.array([norm(spec["layers"][-1], weights, "final_norm", row) for row in rows])
    return Answer(np.array([log_probs(spec, weights, row) for row in rows]), np.array(streams))


def run_layer(layer: Mapping[str, Any], weights: Weights, prefix: str, rows: np.ndarray, chunk: int | None) -> np.ndarray:
    """All segments of one layer: rows [T, hidden] in, the residual stream after it out."""
    a = layer["attention"]
    size = a["segment"] or chunk or len(rows)
    slots = a["window"] - 1 if a["sees_self"] else a["window"]  # rows of memory a segment's first token can see
    memory = [np.zeros(rows.shape[1], rows.dtype)] * (slots if a["start"] == "attended_zeros" else 0)
    out: list[np.ndarray] = []
    for start in range(0, len(rows), size):
        segment = list(rows[start : start + size])
        out += run_segment(layer, weights, prefix, memory, segment)
        memory = [*memory, *segment][-slots:] if slots else []
    return np.array(out)


def run_segment(
    layer: Mapping[str, Any], weights: Weights, prefix: str, memory: Sequence[np.ndarray], rows: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """One segment of one layer; memory and rows are the raw residual stream that enters the layer."""

    def attention_norm(row: np.ndarray) -> np.ndarray:
        return norm(layer, weights, f"{prefix}.attention_norm", row)

    first = layer["norm_first"]
    past, now = ([attention_norm(row) for row in memory], [attention_norm(row) for row in rows]) if first else (memory, rows)
    attended = attend(layer["attention"], weights, f"{prefix}.attention", past, now)
    stream = [row + added for row, added in zip(rows, attended, strict=True)]
    if not first:
        stream = [attention_norm(row) for row in stream]
    if layer["feed_forward"] is not None:
        stream = [_add_feed_forward(layer, weights, prefix, row) for row in stream]
    return stream


def _add_feed_forward(layer: Mapping[str, Any], weights: Weights, prefix: str, row: np.ndarray) -> np.ndarray:
    name = f"{prefix}.feed_forward"
    if layer["norm_first"]:
        return row + feed_forward(layer["feed_forward"], weights, name, norm(layer, weights, f"{name}_norm", row))
    return norm(layer, weights, f"{name}_norm", row + feed_forward(layer["feed_forward"], weights, name, row))
