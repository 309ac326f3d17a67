"""Weights on their way to a GPU: all in the run's dtype, or the matrices that are multiplied with in int8."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from engine.backends.plan import Stack
from engine.backends.runner import Arrays, Folded
from engine.backends.torch.runner import tensors_of
from engine_kernels.gpu_ops import Int8, Matrix, Tables
from engine_kernels.int8 import quantise
from engine_kernels.ops import AttentionTables

MULTIPLIED = ("query", "key", "value", "output", "persistent_keys", "distances")  # of attention; rows lie along the last axis
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Storage:
    """Where weights stand and as what; quantization: None, or 'int8' for every matrix that is multiplied with and no embedding."""

    dtype: torch.dtype
    device: torch.device
    quantization: str | None

    def layer(self, arrays: Arrays) -> tuple[Tensors, dict[str, Matrix]]:
        """A layer's weights in dtype, and the same with int8 in the place of what is multiplied with."""
        weights = tensors_of(arrays, self.dtype, self.device)
        matrices: dict[str, Matrix] = dict(weights)
        if self.quantization is not None:
            names = [f"attention.{name}" for name in MULTIPLIED] + ["feed_forward.up", "feed_forward.down"]
            matrices |= {name: self._int8(arrays[name]) for name in names if name in arrays}
            values = arrays.get("attention.persistent_values")  # [H, N, D], summed over N
            if values is not None:
                turned = self._int8(np.swapaxes(values, 1, 2))
                matrices["attention.persistent_values"] = Int8(turned.values.transpose(1, 2).contiguous(), turned.scale, self.dtype)
        return weights, matrices

    def vocabulary(self, stack: Stack, folded: Folded) -> tuple[Tensors, dict[str, Matrix]]:
        """The weights outside the layers in dtype, and apart from them the matrices that are multiplied with, [outputs, inputs] each.

        The last weights of a model: all are there when it returns.
        """
        arrays = dict(folded.model)
        names = [f"embedding.{c}.projection" for c in range(len(stack.embedding.clusters))] + ["head.clusters"]
        apart = {name: arrays.pop(name) for name in names if name in arrays}
        looked_up: Arrays = {}
        for c, cluster in enumerate(stack.head.clusters):
            rows = arrays.pop(f"head.{c}")
            (looked_up if cluster.tied else apart)[f"head.{c}"] = rows
            if f"head.{c}.projection" in arrays:
                apart[f"head.{c}.projection"] = arrays.pop(f"head.{c}.projection").T
        matrices: dict[str, Matrix] = dict(tensors_of(looked_up, self.dtype, self.device))
        matrices |= {name: self._matrix(array) for name, array in apart.items()}
        weights = tensors_of(arrays, self.dtype, self.device)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # kernels read weights early: docs/kernels.md, "What is read early"
        return weights, matrices

    def _matrix(self, array: np.ndarray) -> Matrix:
        if self.quantization is not None:
            return self._int8(array)
        return tensors_of({"": np.ascontiguousarray(array)}, self.dtype, self.device)[""]

    def _int8(self, array: np.ndarray) -> Int8:
        values, scale = quantise(np.ascontiguousarray(array))
        return Int8(torch.from_numpy(values).to(self.device), torch.from_numpy(scale).to(self.device), self.dtype)

    def describe(self) -> dict[str, str]:
        """What the weights are stored as."""
        dtype = str(self.dtype).removeprefix("torch.")
        if self.quantization is None:
            return {"weights": dtype}
        return {
            "weights": f"{self.quantization}, a float32 scale per row: projections, persistent keys and values, distances, feed-forward, "
            "output rows of their own",
            "not_quantised": f"{dtype}: embedding, output rows tied to it, biases; float32: norms",
        }


def tables_in(tables: AttentionTables[torch.Tensor], matrices: dict[str, Matrix]) -> Tables:
    """The same tables with their distances and persistent vectors as they stand in `matrices`."""
    return AttentionTables[Matrix](
        distances=matrices.get("attention.distances"),
        content_bias=tables.content_bias,
        position_bias=tables.position_bias,
        persistent_keys=matrices.get("attention.persistent_keys"),
        persistent_values=matrices.get("attention.persistent_values"),
        spans=tables.spans,
        span_ramp=tables.span_ramp,
    )


def stacked(weights: list[Matrix], heads: int) -> Matrix:
    """[H · D, hidden] each → [3, H, D, hidden]."""
    shape = (len(weights), heads, -1)
    first = weights[0]
    if isinstance(first, Int8):
        quantised = [weight for weight in weights if isinstance(weight, Int8)]
        values, scale = torch.stack([weight.values for weight in quantised]), torch.stack([weight.scale for weight in quantised])
        return Int8(values.reshape(*shape, first.shape[1]), scale.reshape(shape), first.dtype)
    return torch.stack([weight for weight in weights if not isinstance(weight, Int8)]).reshape(*shape, first.shape[1])
