"""The `triton` backend: layers composed from the Triton launchers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton

from engine.errors import BackendUnavailable, Problem
from engine.model.plan import LayerPlan, Stack
from engine.model.runner import Batch, Folded, Limits, Runner, StepResult
from engine.model.slots import Slots
from engine.model.torch_cache import Groups, Rings, Start
from engine.model.torch_runner import DTYPES, give_tap, start_of, tables_of, tensors_of, visibility
from engine.model.triton_graphs import DecodeSteps
from engine.model.triton_rows import Rows
from engine.model.triton_vocabulary import TritonVocabulary
from engine_kernels.backends import interpreted
from engine_kernels.triton_ops.attention import attend_constants, attend_ring, attend_rows
from engine_kernels.triton_ops.launch import Launcher, launcher
from engine_kernels.triton_ops.projections import Norm, normalise, project, project_heads, write_rings


def build(stack: Stack, folded: Folded, limits: Limits) -> Runner:
    """A TritonRunner on limits.device; raises BackendUnavailable where the device is not there."""
    name = limits.device if limits.device != "auto" else "cpu" if interpreted() else "cuda"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BackendUnavailable(Problem("device", "auto, cuda or cuda:N", repr(name))) from None
    if device.type != ("cpu" if interpreted() else "cuda"):
        raise BackendUnavailable(Problem("device", "a GPU, or the CPU under TRITON_INTERPRET=1", repr(name)))
    return TritonRunner(stack, folded, DTYPES[limits.dtype], device)


class TritonRunner:
    """Runner over kernels: weights, keys and values in one dtype, the residual stream in float32."""

    def __init__(self, stack: Stack, folded: Folded, dtype: torch.dtype, device: torch.device) -> None:
        self.stack = stack
        self.device = device
        self.launch = launcher(device)
        self.layers = [
            TritonLayer(plan, tensors_of(arrays, dtype, device), self.launch)
            for plan, arrays in zip(stack.layers, folded.layers, strict=True)
        ]
        self.vocabulary = TritonVocabulary(stack, tensors_of(folded.model, dtype, device), folded.embedding_scale, self.launch)
        self._slots = Slots()
        self._rings = [Rings(layer.start, layer.capacity) if layer.start else None for layer in self.layers]
        self._last_launches = 0
        self._decode = DecodeSteps(self._all_layers, stack.hidden, self.open(), device)

    def open(self) -> int:
        slot = self._slots.open()
        for rings in self._rings:
            if rings is not None:
                keys = rings.keys
                rings.grow(self._slots.capacity)
                if rings.keys is not keys and slot:
                    self._decode.forget()
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
        with torch.no_grad(), self._on_device():
            self._slots.advance(batch)
            hidden = self.vocabulary.embed_tokens(batch.ids)  # [rows, hidden]
            if batch.tap is None and len(batch.ids) == len(batch.slots):
                hidden = self._decode(hidden, batch.slots, batch.starts)
            else:
                give_tap(batch, -1, hidden)
                hidden = self._all_layers(hidden, Rows.of(batch, self.device), batch)
            return self.vocabulary.result(self.vocabulary.finish(hidden), batch, Groups(batch, self.device))

    def _on_device(self) -> AbstractContextManager[object]:
        """Triton starts kernels on PyTorch's current device."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def _all_layers(self, hidden: torch.Tensor, rows: Rows, tapped: Batch | None = None) -> torch.Tensor:
        """hidden [rows, hidden] through all layers; `tapped` is told of each."""
        before = self.launch.calls.total()
        for index, (layer, rings) in enumerate(zip(self.layers, self._rings, strict=True)):
            hidden = layer(hidden, rows, rings)
            if tapped is not None:
                give_tap(tapped, index, hidden)
        self._last_launches = self.launch.calls.total() - before
        return hidden

    def decode_step(self, rows: int) -> Callable[[], None]:
        """One pass of the layers over `rows` rows of a slot that is nobody's, without embedding and vocabulary; for benchmarks."""
        return self._decode.replay(rows)

    def bytes_of_a_step(self, rows: int) -> int:
        """What the layers' kernels cannot but read for one row of each of `rows` sequences: weights once, rings once each."""
        weights = sum(layer.weight_bytes for layer in self.layers)
        rings = sum(2 * layer.qkv[0, :, :, 0].numel() * layer.see.reach * layer.qkv.element_size() for layer in self.layers if layer.start)
        return weights + rows * rings

    def describe(self) -> dict[str, Any]:
        return {
            "operations": "engine_kernels.triton_ops",
            "triton": triton.__version__,
            "architecture": self.launch.architecture,
            "launches": dict(self.launch.calls),
            "launches_of_last_step": self._last_launches,  # on a GPU, of the graph that was recorded last
        }


class TritonLayer:
    """One layer: attention and an optional feed-forward, norms and residuals inside their kernels."""

    def __init__(self, plan: LayerPlan, weights: dict[str, torch.Tensor], launch: Launcher) -> None:
        self.plan = plan
        self.launch = launch
        self.weight_bytes = sum(tensor.nbytes for tensor in weights.values())
        self.start: Start | None = None  # a layer without heads keeps nothing
        self.output_bias = weights.get("attention.output_bias")
        self.attention_norm = Norm(weights["attention_norm"], weights["attention_norm_bias"], plan.norm_eps)
        if plan.attention is not None:
            start = start_of(plan.attention, weights)
            assert isinstance(start, Start)  # the probe refuses bidirectional attention
            self.start = start
            self.see = visibility(plan.attention)
            self.tables = tables_of(plan.attention, weights)
            self.capacity = self.see.reach + self.see.first  # a row's own key never displaces one it sees
            self.qkv = _stacked([weights[f"attention.{name}"] for name in ("query", "key", "value")], plan.attention.heads)
            biases = [weights.get(f"attention.{name}_bias") for name in ("query", "key", "value")]
            self.qkv_bias = None if biases[0] is None else torch.stack([bias for bias in biases if bias is not None])
            self.output = weights["attention.output"]
        if plan.feed_forward:
            self.feed_forward_norm = Norm(weights["feed_forward_norm"], weights["feed_forward_norm_bias"], plan.norm_eps)
            self.up, self.down = weights["feed_forward.up"], weights["feed_forward.down"]
            self.up_bias, self.down_bias = weights.get("feed_forward.up_bias"), weights.get("feed_forward.down_bias")

    def __call__(self, hidden: torch.Tensor, rows: Rows, rings: Rings | None) -> torch.Tensor:
        """hidden [rows, hidden] float32 → the same after this layer."""
        if self.plan.norm_first:
            hidden = self._attention(hidden, self.attention_norm, rows, rings)
            return self._feed_forward(hidden, self.feed_forward_norm) if self.plan.feed_forward else hidden
        hidden = normalise(self.launch, self._attention(hidden, None, rows, rings), self.attention_norm)
        if self.plan.feed_forward:
            hidden = normalise(self.launch, self._feed_forward(hidden, None), self.feed_forward_norm)
        return hidden

    def _attention(self, hidden: torch.Tensor, norm: Norm | None, rows: Rows, rings: Rings | None) -> torch.Tensor:
        """hidden + attention(norm(hidden))."""
        if rings is None:  # no head: no kernel
            return hidden if self.output_bias is None else hidden + self.output_bias.float()
        launch, kept = self.launch, (rings.keys, rings.values)
        if rows.several is None:
            query = project_heads(launch, hidden, self.qkv, self.qkv_bias, norm, kept, rows.slots, rows.positions)
        else:
            new = self._packed(len(hidden)), self._packed(len(hidden))
            query = project_heads(launch, hidden, self.qkv, self.qkv_bias, norm, new, rows.order, rows.positions)
            if rows.single is not None:
                write_rings(launch, new, kept, rows.single.first_rows, rows.slots, rows.positions)
        constants = attend_constants(launch, query, self.tables, self.see)
        attended = torch.empty_like(query)
        if rows.single is not None:
            attend_ring(launch, query, kept, constants, rows.single, self.tables, self.see, attended)
        if rows.several is not None:
            attend_rows(launch, query, kept, new, constants, rows.several, rows.lengths, self.tables, self.see, attended)
            write_rings(launch, new, kept, rows.tail(self.capacity), rows.slots, rows.positions)
        return project(launch, attended.flatten(1), self.output, self.output_bias, residual=hidden)

    def _feed_forward(self, hidden: torch.Tensor, norm: Norm | None) -> torch.Tensor:
        """hidden + feed_forward(norm(hidden))."""
        inner = project(self.launch, hidden, self.up, self.up_bias, norm=norm, relu=True, dtype=self.up.dtype)
        return project(self.launch, inner, self.down, self.down_bias, residual=hidden)

    def _packed(self, rows: int) -> torch.Tensor:
        """Keys or values of new rows as rings of capacity 1, [rows, H, 1, D]."""
        _, heads, head_dim, _ = self.qkv.shape
        return self.qkv.new_empty((rows, heads, 1, head_dim))


def _stacked(weights: list[torch.Tensor], heads: int) -> torch.Tensor:
    """[H · D, hidden] each → [3, H, D, hidden]."""
    return torch.stack([weight.reshape(heads, -1, weight.shape[1]) for weight in weights])
