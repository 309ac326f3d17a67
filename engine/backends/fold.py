"""Checkpoint → Folded: every product of stored numbers formed once, in float32, for all backends alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np

from engine.backends.runner import Arrays, Folded
from engine.checkpoint import Checkpoint, Weights
from engine.spec import AttentionSpec, LayerSpec, ModelSpec, SharedTable, Sinusoid, Table, Vocabulary
from engine_kernels import native


def fold(checkpoint: Checkpoint) -> Folded:
    """The weights a backend starts from; see runner.Folded for names and products."""
    spec, weights = checkpoint.spec, checkpoint.weights
    return Folded(model=_model(spec, weights), layers=_Layers(spec, weights))


class _Layers(Sequence[Arrays]):
    """The layers folded one at a time as they are asked for, so that float copies of a whole model never stand beside the packed one."""

    def __init__(self, spec: ModelSpec, weights: Weights) -> None:
        self._spec = spec
        self._weights = weights

    def __len__(self) -> int:
        return len(self._spec.layers)

    @overload
    def __getitem__(self, index: int) -> Arrays: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Arrays]: ...
    def __getitem__(self, index: int | slice) -> Arrays | Sequence[Arrays]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = range(len(self))[index]  # raises IndexError
        return _layer(self._spec.layers[number], f"layers.{number}.", self._spec, self._weights)


def _float(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, dtype=np.float32)


def _model(spec: ModelSpec, weights: Weights) -> dict[str, np.ndarray]:
    model = {name: _float(weights[name]) for name in weights if name.startswith(("embedding.", "head."))}
    if spec.final_norm:
        model["final_norm"] = _float(weights["final_norm"]) + np.float32(spec.layers[-1].norm_offset)
        model["final_norm_bias"] = _float(weights["final_norm_bias"])
    for index, cluster in enumerate(spec.head.clusters if isinstance(spec.head, Vocabulary) else ()):
        if cluster.tied:
            name, start, stop = spec.tied_source(index)
            model[f"head.{index}"] = model[name][start:stop]
        if cluster.tied_projection:
            model[f"head.{index}.projection"] = model[f"embedding.{index}.projection"]
    return model


def _layer(layer: LayerSpec, prefix: str, spec: ModelSpec, weights: Weights) -> dict[str, np.ndarray]:
    folded = {name[len(prefix) :]: _float(weights[name]) for name in weights if name.startswith(prefix)}
    for norm in ("attention_norm", "feed_forward_norm"):
        if norm in folded and layer.norm_offset:
            folded[norm] = folded[norm] + np.float32(layer.norm_offset)
    if not layer.attention.heads:
        return folded
    _fold_attention(folded, layer, spec, weights)
    return folded


def _fold_attention(folded: dict[str, np.ndarray], layer: LayerSpec, spec: ModelSpec, weights: Weights) -> None:
    a = layer.attention
    if a.persistent:
        folded["attention.persistent_values"] = folded["attention.persistent_values"] * np.float32(np.sqrt(a.persistent))
    for name in ("query", "query_bias"):
        if a.score_scale != 1 and f"attention.{name}" in folded:
            folded[f"attention.{name}"] = folded[f"attention.{name}"] * np.float32(a.score_scale)
    if a.scaled:
        columns = np.repeat(folded.pop("attention.head_scale"), a.head_dim)  # [heads * head_dim]
        folded["attention.output"] = folded["attention.output"] * columns
    distances = _distances(a, folded, spec, weights)
    if distances is not None:
        folded["attention.distances"] = distances
    if a.start == "attended_zeros":
        folded["attention.zero_key"] = _zero_row(layer, "key", folded)
        folded["attention.zero_value"] = _zero_row(layer, "value", folded)


def _distances(a: AttentionSpec, folded: dict[str, np.ndarray], spec: ModelSpec, weights: Weights) -> np.ndarray | None:
    """[heads, reach, head_dim] of the layer's own projection, or [1, reach, head_dim] of a shared table; row 0 is first_distance."""
    if a.reach is None:
        return None  # relative positions have a window
    if isinstance(a.position, SharedTable):
        return _float(weights["position.table"][: a.reach])[None]
    if isinstance(a.position, Table):
        rows = _float(weights["position.table"][: a.reach])
    elif isinstance(a.position, Sinusoid):
        rows = sinusoid_rows(_float(weights["position.frequencies"]), a)
    else:
        return None
    relative = folded.pop("attention.relative").reshape(a.heads, a.head_dim, -1)
    projected = np.stack([native.linear(rows, head) for head in relative])  # head by head: the same bits however many are kept
    if a.bias:
        projected += folded.pop("attention.relative_bias").reshape(a.heads, 1, a.head_dim)
    return projected


def sinusoid_rows(frequencies: np.ndarray, a: AttentionSpec) -> np.ndarray:
    """[sin(t·f), cos(t·f)] for t = min(distance, clamp), [reach, hidden] float32, multiplied in float32 as the source does.

    Transformer-XL (arXiv 1901.02860), class PositionalEmbedding of kimiyoung/transformer-xl.
    """
    assert isinstance(a.position, Sinusoid) and a.reach is not None
    first = 0 if a.sees_self else 1
    steps = np.arange(first, first + a.reach, dtype=np.float32)
    if a.position.clamp is not None:
        steps = np.minimum(steps, np.float32(a.position.clamp))
    angles = steps[:, None] * frequencies[None, :]
    return np.concatenate((np.sin(angles), np.cos(angles)), axis=1)


def _zero_row(layer: LayerSpec, name: str, folded: dict[str, np.ndarray]) -> np.ndarray:
    """The key or value [heads, head_dim] of a row of zeros in the residual stream: LayerNorm turns it into its bias."""
    a = layer.attention
    row = np.zeros(a.heads * a.head_dim, dtype=np.float32)
    if layer.norm_first:
        row = folded[f"attention.{name}"] @ folded["attention_norm_bias"]
    if a.bias:
        row = row + folded[f"attention.{name}_bias"]
    return row.reshape(a.heads, a.head_dim)
