"""Bidirectional attention of a sequence in float64 loops, and the activations a number at a time."""

from __future__ import annotations

import math

import numpy as np


def attend_bidirectional(query: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """query, keys, values [B, H, T, D] → the same shape: each row's weighted mean of all values (arXiv 1706.03762, equation 1)."""
    out = np.zeros(query.shape)
    for b, h, t in np.ndindex(query.shape[:3]):
        scores = [float(query[b, h, t] @ keys[b, h, j]) / math.sqrt(query.shape[3]) for j in range(query.shape[2])]
        shares = np.array([math.exp(score - max(scores)) for score in scores])
        out[b, h, t] = shares / shares.sum() @ values[b, h]
    return out


def activation(name: str, x: float) -> float:
    """relu; gelu by erf, gelu_tanh its approximation, quick_gelu, silu (arXiv 1606.08415); tanh."""
    return {
        "relu": max(x, 0.0),
        "gelu": x * (1 + math.erf(x / math.sqrt(2))) / 2,
        "gelu_tanh": x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))) / 2,
        "quick_gelu": x / (1 + math.exp(-1.702 * x)),
        "silu": x / (1 + math.exp(-x)),
        "tanh": math.tanh(x),
    }[name]
