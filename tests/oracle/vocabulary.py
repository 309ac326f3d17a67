"""The plain and the adaptive softmax, one row at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.oracle.parts import Weights, token_row


def log_probs(spec: Mapping[str, Any], weights: Weights, hidden: np.ndarray) -> np.ndarray:
    """log p of every token [vocab] from one final row [hidden]."""
    head = spec["head"]
    if head["kind"] != "Vocabulary":
        raise NotImplementedError(f"the oracle knows no {head['kind']} head")
    clusters = head["clusters"]
    tails = len(clusters) - 1
    first = _logits(spec, weights, 0, 0, hidden)
    if tails:
        reads = hidden if head["cluster_input"] == "hidden" else _project(spec, weights, 0, hidden)
        entries = weights["head.clusters"] @ reads
        if head["bias"]:
            entries = entries + weights["head.clusters_bias"]
        first = np.concatenate((first, entries))
    first = log_softmax(first)
    words = clusters[0]["size"]
    result = list(first[:words])
    start = words
    for c in range(1, tails + 1):
        entry = words + c - 1 if head["order"] == "ascending" else words + tails - c
        result.extend(first[entry] + log_softmax(_logits(spec, weights, c, start, hidden)))
        start += clusters[c]["size"]
    return np.array(result)


def _logits(spec: Mapping[str, Any], weights: Weights, c: int, start: int, hidden: np.ndarray) -> np.ndarray:
    """Scores of the words of cluster c, whose first token is `start`; a tied cluster reads the embedding's row of the same token."""
    cluster = spec["head"]["clusters"][c]
    z = _project(spec, weights, c, hidden)
    logits = np.zeros(cluster["size"], hidden.dtype)
    for word in range(cluster["size"]):
        row = token_row(spec, weights, start + word, projected=False) if cluster["tied"] else weights[f"head.{c}"][word]
        logits[word] = z @ row
    return logits + weights[f"head.{c}.bias"] if spec["head"]["bias"] else logits


def _project(spec: Mapping[str, Any], weights: Weights, c: int, hidden: np.ndarray) -> np.ndarray:
    cluster = spec["head"]["clusters"][c]
    if not cluster["projected"]:
        return hidden
    return hidden @ weights[f"embedding.{c}.projection" if cluster["tied_projection"] else f"head.{c}.projection"]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())
