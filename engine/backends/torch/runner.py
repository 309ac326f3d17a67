"""The `torch` backend: the stack composed from the plain PyTorch operations of engine_kernels.reference."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange

from engine.backends.plan import Stack
from engine.backends.runner import Batch, Folded, Limits, Runner, StepResult, fresh_batch, position_rows
from engine.backends.slots import Slots
from engine.backends.torch.cache import Bidirectional, Groups, Past, Rings, Start, Tables
from engine.backends.torch.device import torch_device
from engine.backends.torch.embedding import TorchEmbedding
from engine.backends.torch.head import TorchHead
from engine.errors import BackendUnavailable, Problem
from engine_kernels import reference
from engine_kernels.ops import AttentionTables
from engine_kernels.shapes import AttentionShape, LayerShape

IN_FLOAT32 = ("norm", "norm_bias", "content_bias", "position_bias")  # added or multiplied in float32 whatever the dtype


def build(stack: Stack, folded: Folded, limits: Limits) -> Runner:
    """A TorchRunner on limits.device; raises BackendUnavailable where the device is not there."""
    device = torch_device(limits.device, auto="cpu", expected="auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailable(Problem("device", "one PyTorch can use here", f"{limits.device!r}: PyTorch sees no GPU"))
    if limits.threads is not None:
        torch.set_num_threads(limits.threads)  # PyTorch has one pool for the whole process
    return TorchRunner(stack, folded, torch_dtype(limits.dtype), device)


def torch_dtype(name: str) -> torch.dtype:
    """PyTorch's own of a name of engine_kernels.backends.DTYPES."""
    found: torch.dtype = getattr(torch, name)
    return found


class TorchRunner:
    """Runner over plain tensors: weights and caches in one dtype, the residual stream in float32."""

    def __init__(self, stack: Stack, folded: Folded, dtype: torch.dtype, device: torch.device) -> None:
        self.stack = stack
        self.device = device
        self.layers = [
            TorchLayer(plan, tensors_of(arrays, dtype, device)) for plan, arrays in zip(stack.layers, folded.layers, strict=True)
        ]
        weights = tensors_of(folded.model, dtype, device)
        self.embedding, self.head = TorchEmbedding(stack, weights), TorchHead(stack, weights)
        self._slots = Slots()
        self._starts = [layer.start for layer in self.layers]
        self._rings = [Rings(layer.start, layer.visibility.reach) if isinstance(layer.start, Start) else None for layer in self.layers]

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
            if self.stack.causal:
                self._slots.advance(batch)
            groups = Groups(batch, self.device)
            hidden = self._hidden(batch, groups, self._rings if self.stack.causal else self._starts)
            return self.head.result(hidden, batch, groups)

    def forward(self, ids: torch.Tensor | np.ndarray) -> torch.Tensor:
        """log p(next | ids[:, :t+1]) [B, T, vocab] of streams from their start, differentiable in every weight; ids [B, T]."""
        batch = fresh_batch(np.asarray(ids))
        hidden = self._hidden(batch, Groups(batch, self.device), self._starts)
        return self.head.log_probs(hidden).reshape(*ids.shape, self.stack.vocab)

    def forward_bidirectional(self, batch: Batch, head_factors: Sequence[torch.Tensor] | None = None) -> torch.Tensor:
        """What a batch of whole sequences wants, hidden or logits, packed as in StepResult, differentiable in every weight.

        head_factors: for each layer a factor on each head's output [heads], differentiable too.
        """
        groups = Groups(batch, self.device)
        hidden = self._hidden(batch, groups, self._starts, head_factors)
        return hidden if batch.want == "hidden" else self.head.logits(hidden, groups.first_rows)

    def _hidden(
        self, batch: Batch, groups: Groups, pasts: Sequence[Past | None], head_factors: Sequence[torch.Tensor] | None = None
    ) -> torch.Tensor:
        """The last hidden states [rows, hidden], after the final norm where the model has one."""
        hidden = self.embedding.embed(batch.ids, position_rows(batch, self.stack.embedding), batch.token_types)
        give_tap(batch, -1, hidden)
        for index, (layer, past) in enumerate(zip(self.layers, pasts, strict=True)):
            hidden = layer(hidden, groups, past, None if head_factors is None else head_factors[index])
            give_tap(batch, index, hidden)
        return self.head.final_norm(hidden)

    def describe(self) -> dict[str, Any]:
        return {"operations": "engine_kernels.reference", "torch": torch.__version__, "threads": torch.get_num_threads()}


class TorchLayer:
    """One layer: attention and an optional feed-forward, each with its residual and its norm."""

    def __init__(self, plan: LayerShape, weights: dict[str, torch.Tensor]) -> None:
        self.plan = plan
        self.weights = weights
        self.activation = reference.ACTIVATIONS[plan.activation]
        self.start: Past | None = None  # a layer without heads keeps nothing
        if plan.attention is not None:
            self.start = start_of(plan.attention, weights)
            self.visibility = plan.attention.visibility
            self.tables = tables_of(plan.attention, weights)

    def __call__(self, hidden: torch.Tensor, groups: Groups, past: Past | None, head_factors: torch.Tensor | None = None) -> torch.Tensor:
        """hidden [rows, hidden] → the same after this layer; head_factors [heads] multiply the heads' outputs."""
        if self.plan.norm_first:
            hidden = hidden + self._attention(self._norm("attention_norm", hidden), groups, past, head_factors)
            if self.plan.feed_forward:
                hidden = hidden + self._feed_forward(self._norm("feed_forward_norm", hidden))
            return hidden
        hidden = self._norm("attention_norm", hidden + self._attention(hidden, groups, past, head_factors))
        if self.plan.feed_forward:
            hidden = self._norm("feed_forward_norm", hidden + self._feed_forward(hidden))
        return hidden

    def _attention(self, x: torch.Tensor, groups: Groups, past: Past | None, head_factors: torch.Tensor | None) -> torch.Tensor:
        bias = self.weights.get("attention.output_bias")
        if past is None:
            return torch.zeros_like(x) if bias is None else bias.float().expand_as(x)
        query, key, value = (self._heads(name, x) for name in ("query", "key", "value"))  # [rows, H, D]
        parts = [
            past.attend(group.take(query), group.take(key), group.take(value), group, self.tables, self.visibility) for group in groups
        ]
        mixed = groups.packed(parts)  # [rows, H · D]
        if head_factors is not None:
            heads = rearrange(mixed, "row (head dim) -> row head dim", head=len(head_factors))
            mixed = rearrange(heads * head_factors[:, None], "row head dim -> row (head dim)")
        return reference.linear(mixed, self.weights["attention.output"], bias)

    def _heads(self, name: str, x: torch.Tensor) -> torch.Tensor:
        assert self.plan.attention is not None
        rows = reference.linear(x, self.weights[f"attention.{name}"], self.weights.get(f"attention.{name}_bias"))
        heads: torch.Tensor = rearrange(rows, "row (head dim) -> row head dim", head=self.plan.attention.heads)
        return heads

    def _feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        up, down = self.weights["feed_forward.up"], self.weights["feed_forward.down"]
        biases = [self.weights.get(f"feed_forward.{name}_bias") for name in ("up", "down")]
        return reference.feed_forward(x, up, biases[0], down, biases[1], self.activation)

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return reference.layer_norm(x, self.weights[name], self.weights[f"{name}_bias"], self.plan.norm_eps)


def start_of(plan: AttentionShape, weights: dict[str, torch.Tensor]) -> Past:
    if plan.visibility.bidirectional:
        return Bidirectional(weights["attention.key"].dtype)
    if plan.visibility.attended_zeros:
        return Start(weights["attention.zero_key"], weights["attention.zero_value"])
    zeros = weights["attention.key"].new_zeros((plan.heads, plan.head_dim))
    return Start(zeros, zeros)  # never visible, only there to be overwritten


def tables_of(plan: AttentionShape, weights: dict[str, torch.Tensor]) -> Tables:
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
        batch.tap(index, hidden.detach().float().cpu().numpy())
