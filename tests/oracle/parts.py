"""Embedding, norm and feed-forward, one row at a time; all arrays in the dtype of the weights given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Weights = Mapping[str, np.ndarray]


def embed(spec: Mapping[str, Any], weights: Weights, token: int) -> np.ndarray:
    """The scaled embedding [hidden] of one token."""
    e = spec["embedding"]
    if e["positions"] or e["token_types"] or e["norm"]:
        raise NotImplementedError("the oracle knows no encoder embedding")
    return token_row(spec, weights, token, projected=True) * e["scale"]


def token_row(spec: Mapping[str, Any], weights: Weights, token: int, *, projected: bool) -> np.ndarray:
    """The embedding's stored row of a token [width], or its projection [hidden]."""
    first = 0
    for c, cluster in enumerate(spec["embedding"]["clusters"]):
        if token < first + cluster["size"]:
            row = weights[f"embedding.{c}"][token - first]
            return weights[f"embedding.{c}.projection"] @ row if projected and cluster["projected"] else row
        first += cluster["size"]
    raise IndexError(f"token {token} is outside the vocabulary")


def norm(layer: Mapping[str, Any], weights: Weights, name: str, row: np.ndarray) -> np.ndarray:
    """LayerNorm of one row, gain = offset + stored weight."""
    if layer["norm"] != "layer":
        raise NotImplementedError(f"the oracle knows no {layer['norm']} norm")
    centred = row - row.mean()
    spread = np.sqrt((centred * centred).mean() + row.dtype.type(layer["norm_eps"]))
    return centred / spread * (weights[name] + row.dtype.type(layer["norm_offset"])) + weights[f"{name}_bias"]


def feed_forward(spec: Mapping[str, Any], weights: Weights, prefix: str, row: np.ndarray) -> np.ndarray:
    """W2 relu(W1 x + b1) + b2 of one row."""
    if spec["gated"] or spec["activation"] != "relu":
        raise NotImplementedError(f"the oracle knows no {spec['activation']} feed-forward")
    inner = linear(weights, f"{prefix}.up", row)
    return linear(weights, f"{prefix}.down", np.where(inner > 0, inner, 0))


def linear(weights: Weights, name: str, row: np.ndarray) -> np.ndarray:
    """weight · row + bias; no bias where the model stores none."""
    out = weights[name] @ row
    return out + weights[f"{name}_bias"] if f"{name}_bias" in weights else out
