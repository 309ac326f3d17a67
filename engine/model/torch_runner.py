"""The `torch` backend: the stack composed from the plain PyTorch operations of engine_kernels.reference."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

from engine.errors import BackendUnavailable, Problem
from engine.model.plan import AttentionPlan, LayerPlan, Stack
from engine.model.runner import Batch, Folded, Limits, Runner, StepResult
from engine.model.slots import Slots
from engine.model.torch_cache import Groups, Past, Rings, Start, Tables
from engine.model.torch_vocabulary import TorchVocabulary
from engine_kernels import reference
from engine_kernels.ops import AttentionTables, Visibility

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
IN_FLOAT32 = ("norm", "norm_bias", "content_bias", "position_bias")  # added or multiplied in float32 whatever the dtype


def build(stack: Stack, folded: Folded, limits: Limits) -> Runner:
    """A TorchRunner on limits.device; raises BackendUnavailable where the device is not there."""
    name = "cpu" if limits.device == "auto" else limits.device
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BackendUnavailable(Problem("device", "auto, cpu, cuda or cuda:N", repr(name))) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailable(Problem("device", "one PyTorch can use here", f"{name!r}: PyTorch sees no GPU"))
    if limits.threads is not None:
        torch.set_num_threads(limits.threads)  # PyTorch has one pool for the whole process
    return TorchRunner(stack, folded, DTYPES[limits.dtype], device)


class TorchRunner:
    """Runner over plain tensors: weights and caches in one dtype, the residual stream in float32."""

    def __init__(self, stack: Stack, folded: Folded, dtype: torch.dtype, device: torch.device) -> None:
        self.stack = stack
        self.device = device
        self.layers = [
            TorchLayer(plan, tensors_of(arrays, dtype, device)) for plan, arrays in zip(stack.layers, folded.layers, strict=True)
        ]
        self.vocabulary = TorchVocabulary(stack, tensors_of(folded.model, dtype, device), folded.embedding_scale)
        self._slots = Slots()
        self._rings = [Rings(layer.start, layer.see.reach) if layer.start else None for layer in self.layers]

    def open(self) -> int:
        slot = self._slots.open()
        for rings in self._rings:
            if rings is not None:
                rings.grow(self._slots.capacity)
                rings.restart(slot)
        return slot

    def reset(self, slot: int) -> None:
        self._slots.reset(slot)
        for rings in self._rings:
            if rings is not None:
                rings.restart(slot)

    def close(self, slot: int) -> None:
        self._slots.close(slot)

    def step(self, batch: Batch) -> StepResult:
        with torch.no_grad():
            self._slots.advance(batch)
            groups = Groups(batch, self.device)
            hidden = self.vocabulary.embed(torch.from_numpy(batch.ids).to(self.device))  # [rows, hidden]
            give_tap(batch, -1, hidden)
            for index, (layer, rings) in enumerate(zip(self.layers, self._rings, strict=True)):
                hidden = layer(hidden, groups, rings)
                give_tap(batch, index, hidden)
            return self.vocabulary.result(self.vocabulary.finish(hidden), batch, groups.last_rows)

    def forward(self, ids: torch.Tensor | np.ndarray) -> torch.Tensor:
        """log p(next | ids[:, :t+1]) [B, T, vocab] of streams from their start, differentiable in every weight; ids [B, T]."""
        groups = Groups.fresh(ids.shape[0], ids.shape[1], self.device)
        hidden = self.vocabulary.embed(torch.as_tensor(ids, device=self.device).reshape(-1))
        for layer in self.layers:
            hidden = layer(hidden, groups, layer.start)
        return self.vocabulary.log_probs(self.vocabulary.finish(hidden)).reshape(*ids.shape, self.stack.vocab)

    def describe(self) -> dict[str, Any]:
        return {"operations": "engine_kernels.reference", "torch": torch.__version__, "threads": torch.get_num_threads()}


class TorchLayer:
    """One layer: attention and an optional feed-forward, each with its residual and its norm."""

    def __init__(self, plan: LayerPlan, weights: dict[str, torch.Tensor]) -> None:
        self.plan = plan
        self.weights = weights
        self.start: Start | None = None  # a layer without heads keeps nothing
        if plan.attention is not None:
            self.start = start_of(plan.attention, weights)
            self.see = visibility(plan.attention)
            self.tables = tables_of(plan.attention, weights)

    def __call__(self, hidden: torch.Tensor, groups: Groups, past: Past | None) -> torch.Tensor:
        """hidden [rows, hidden] → the same after this layer."""
        if self.plan.norm_first:
            hidden = hidden + self._attention(self._norm("attention_norm", hidden), groups, past)
            if self.plan.feed_forward:
                hidden = hidden + self._feed_forward(self._norm("feed_forward_norm", hidden))
            return hidden
        hidden = self._norm("attention_norm", hidden + self._attention(hidden, groups, past))
        if self.plan.feed_forward:
            hidden = self._norm("feed_forward_norm", hidden + self._feed_forward(hidden))
        return hidden

    def _attention(self, x: torch.Tensor, groups: Groups, past: Past | None) -> torch.Tensor:
        bias = self.weights.get("attention.output_bias")
        if past is None:
            return torch.zeros_like(x) if bias is None else bias.float().expand_as(x)
        query, key, value = (self._heads(name, x) for name in ("query", "key", "value"))  # [rows, H, D]
        parts = [past.attend(group.take(query), group.take(key), group.take(value), group, self.tables, self.see) for group in groups]
        return reference.linear(groups.packed(parts), self.weights["attention.output"], bias)

    def _heads(self, name: str, x: torch.Tensor) -> torch.Tensor:
        assert self.plan.attention is not None
        rows = reference.linear(x, self.weights[f"attention.{name}"], self.weights.get(f"attention.{name}_bias"))
        return rows.reshape(len(x), self.plan.attention.heads, self.plan.attention.head_dim)

    def _feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        up, down = self.weights["feed_forward.up"], self.weights["feed_forward.down"]
        return reference.feed_forward(x, up, self.weights.get("feed_forward.up_bias"), down, self.weights.get("feed_forward.down_bias"))

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return reference.layer_norm(x, self.weights[name], self.weights[f"{name}_bias"], self.plan.norm_eps)


def start_of(plan: AttentionPlan, weights: dict[str, torch.Tensor]) -> Start:
    if plan.attended_zeros:
        return Start(weights["attention.zero_key"], weights["attention.zero_value"])
    zeros = weights["attention.key"].new_zeros((plan.heads, plan.head_dim))
    return Start(zeros, zeros)  # never visible, only there to be overwritten


def visibility(plan: AttentionPlan) -> Visibility:
    return Visibility(plan.window, plan.segment, plan.reach, plan.first_distance, plan.attended_zeros)


def tables_of(plan: AttentionPlan, weights: dict[str, torch.Tensor]) -> Tables:
    spans = None
    if plan.spans is not None:
        spans = torch.tensor(plan.spans, dtype=torch.float32, device=weights["attention.key"].device)
    return AttentionTables(
        distances=weights.get("attention.distances"),
        content_bias=weights.get("attention.content_bias"),
        position_bias=weights.get("attention.position_bias"),
        persistent_keys=weights.get("attention.persistent_keys"),
        persistent_values=weights.get("attention.persistent_values"),
        spans=spans,
        span_ramp=plan.span_ramp,
    )


def tensors_of(arrays: dict[str, np.ndarray], dtype: torch.dtype, device: torch.device) -> dict[str, torch.Tensor]:
    """Arrays as tensors of the run's dtype; equal float32 arrays stay views of the checkpoint's mapped file."""
    tensors: dict[str, torch.Tensor] = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")  # weights are only read
        for name, array in arrays.items():
            kept = torch.float32 if name.endswith(IN_FLOAT32) else dtype
            tensors[name] = torch.from_numpy(array).to(device=device, dtype=kept)
    return tensors


def give_tap(batch: Batch, index: int, hidden: torch.Tensor) -> None:
    if batch.tap is not None:
        batch.tap(index, hidden.float().cpu().numpy())
