"""The numbers int8 weights stand for, in NumPy from their definition: symmetric per row, scale = max|row| / 127, to nearest even."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np

from engine.backends.fold import fold
from engine.backends.runner import Folded
from engine.checkpoint import Checkpoint
from engine.spec import Vocabulary

MULTIPLIED = ("query", "key", "value", "output", "up", "down", "persistent_keys", "distances")  # rows lie along the last axis


def rounded(w: np.ndarray) -> np.ndarray:
    """w [.., rows, k] with each row as int8 has it, float32."""
    scale = np.abs(w).max(axis=-1, keepdims=True, initial=0).astype(np.float32) / np.float32(127)
    steps = np.divide(w, scale, out=np.zeros_like(w, np.float32), where=scale > 0)
    return np.rint(steps) * scale


def transposed(w: np.ndarray) -> np.ndarray:
    return np.swapaxes(w, -1, -2)


def rounded_folded(checkpoint: Checkpoint) -> Folded:
    """What a backend starts from, every matrix but the embedding and what is tied to it as int8 has it."""
    folded, head = fold(checkpoint), checkpoint.spec.head
    assert isinstance(head, Vocabulary)
    layers = []
    for arrays in folded.layers:
        own = {name: rounded(w) if name.split(".")[-1] in MULTIPLIED else w for name, w in arrays.items()}
        if "attention.persistent_values" in own:  # [heads, N, D], multiplied with as [D, N]
            own["attention.persistent_values"] = transposed(rounded(transposed(own["attention.persistent_values"])))
        layers.append(own)
    model = dict(folded.model)
    for c in range(len(checkpoint.spec.embedding.clusters)):
        if f"embedding.{c}.projection" in model:
            model[f"embedding.{c}.projection"] = rounded(model[f"embedding.{c}.projection"])
    for c, cluster in enumerate(head.clusters):
        if not cluster.tied:
            model[f"head.{c}"] = rounded(model[f"head.{c}"])
        if cluster.projected:  # [hidden, width], multiplied with as [width, hidden]
            model[f"head.{c}.projection"] = transposed(rounded(transposed(folded.model[f"head.{c}.projection"])))
    if "head.clusters" in model:
        model["head.clusters"] = rounded(model["head.clusters"])
    return replace(folded, layers=tuple(layers), model=model)


def rounded_weights(checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The same model for the oracle: its spec and stored tensors, with distances formed and products of the fold taken out again."""
    spec, weights, folded = deepcopy(checkpoint.spec.to_dict()), dict(checkpoint.weights), rounded_folded(checkpoint)
    for cluster in spec["head"]["clusters"]:
        cluster["tied_projection"] = False  # either side rounds its own rows
    for name, w in folded.model.items():
        if name not in ("final_norm", "final_norm_bias"):
            weights[name] = w
    for index, (layer, arrays) in enumerate(zip(checkpoint.spec.layers, folded.layers, strict=True)):
        for name, w in arrays.items():
            if name.split(".")[-1] in MULTIPLIED:
                weights[f"layers.{index}.{name}"] = w
        if "attention.persistent_values" in arrays:
            values = arrays["attention.persistent_values"].astype(np.float64) / np.sqrt(layer.attention.persistent)
            weights[f"layers.{index}.attention.persistent_values"] = values
        if layer.attention.scaled and layer.attention.heads:
            weights[f"layers.{index}.attention.head_scale"] = np.ones(layer.attention.heads)
    return spec, weights
