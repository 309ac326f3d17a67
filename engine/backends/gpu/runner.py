"""The runner of the GPU backends: layers composed from the operations of engine_kernels/gpu_ops.py."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from engine.backends.gpu.graphs import DecodeSteps, Launches, Surroundings, Work
from engine.backends.gpu.mid_stream import MidStreamStep, randomise
from engine.backends.gpu.recording import Results, recording
from engine.backends.gpu.rows import Rows
from engine.backends.gpu.vocabulary import GpuVocabulary
from engine.backends.gpu.weights import Storage, stacked, tables_in
from engine.backends.plan import Stack
from engine.backends.runner import Batch, Folded, StepResult, position_rows
from engine.backends.slots import Slots
from engine.backends.torch.cache import Groups, Rings, Start
from engine.backends.torch.head import TorchNextToken
from engine.backends.torch.runner import give_tap, start_of, tables_of
from engine_kernels.gpu_ops import GpuKernels, Matrix, Norm
from engine_kernels.shapes import LayerShape


class GpuRunner:
    """Runner over kernels: keys, values and weights in one dtype, or matrices in int8; the residual stream in float32."""

    def __init__(
        self,
        stack: Stack,
        folded: Folded,
        dtype: torch.dtype,
        device: torch.device,
        kernels: GpuKernels,
        quantization: str | None = None,
    ) -> None:
        self.stack = stack
        self.device = device
        self.kernels = kernels
        self._storage = Storage(dtype, device, quantization)
        self.layers = [
            GpuLayer(plan, *self._storage.layer(arrays), kernels) for plan, arrays in zip(stack.layers, folded.layers, strict=True)
        ]
        self.vocabulary = GpuVocabulary(stack, *self._storage.vocabulary(stack, folded), kernels)
        self._slots = Slots()
        self._rings = [Rings(layer.start, layer.capacity) if layer.start else None for layer in self.layers]
        self._steps: list[DecodeSteps] = []  # all that hold recordings
        self._around = Surroundings(recording(device), Launches(kernels.calls), self.open(), device)
        indices = self.vocabulary.indices
        self._decode, self._next = (self._recorded(work, indices) for work in (self._to_hidden, self._to_next_token))

    def _recorded(self, work: Work, indices: int) -> DecodeSteps:
        """Decode steps that are recorded anew when the rings move."""
        steps = DecodeSteps(work, self._around, hidden=self.stack.hidden, indices=indices)
        self._steps.append(steps)
        return steps

    def open(self) -> int:
        slot = self._slots.open()
        for rings in self._rings:
            if rings is not None:
                keys = rings.keys
                rings.grow(self._slots.capacity)
                if rings.keys is not keys:
                    for steps in self._steps:
                        steps.forget()
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
            if self.stack.causal:
                self._slots.advance(batch)
            ids, positions, types = batch.ids, position_rows(batch, self.stack.embedding), batch.token_types
            if self.stack.causal and batch.tap is None and len(ids) == len(batch.slots):
                inputs = self.vocabulary.inputs(ids, positions, types)
                if batch.want == "next":
                    hidden, head = self._next(inputs, batch.slots, batch.starts)
                    if len(self.stack.head.clusters) > 1:  # tails are asked for later: another step may then have written over it
                        hidden = hidden.clone()
                    return StepResult(next=TorchNextToken(self.vocabulary, hidden, head))
                (hidden,) = self._decode(inputs, batch.slots, batch.starts)  # read to the end below, before any other step
            else:
                hidden = self.vocabulary.embed(ids, positions, types)  # [rows, hidden]
                give_tap(batch, -1, hidden)
                with self._around.launches.layers():
                    hidden = self._all_layers(hidden, Rows.of(batch, self.device, causal=self.stack.causal), batch)
            return self.vocabulary.result(self.vocabulary.final_norm(hidden), batch, Groups(batch, self.device))

    def _on_device(self) -> AbstractContextManager[object]:
        """Kernels start on PyTorch's current device."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def _all_layers(self, hidden: torch.Tensor, rows: Rows, tapped: Batch | None = None) -> torch.Tensor:
        """hidden [rows, hidden] through all layers; `tapped` is told of each."""
        for index, (layer, rings) in enumerate(zip(self.layers, self._rings, strict=True)):
            hidden = layer(hidden, rows, rings)
            if tapped is not None:
                give_tap(tapped, index, hidden)
        return hidden

    def _decode_layers(self, hidden: torch.Tensor, rows: Rows) -> torch.Tensor:
        """The same for one row of each sequence: what a recorded step does."""
        return self._all_layers(hidden, rows)

    def _layers_alone(self, hidden: torch.Tensor, rows: Rows) -> Results:
        """hidden [rows, hidden] through all layers, as decode_step times it."""
        with self._around.launches.layers():
            return (self._decode_layers(hidden, rows),)

    def _to_hidden(self, inputs: torch.Tensor, rows: Rows) -> Results:
        """vocabulary.inputs through all layers, before the final norm."""
        return self._layers_alone(self.vocabulary.begin(inputs), rows)

    def _to_next_token(self, inputs: torch.Tensor, rows: Rows) -> Results:
        """What TorchNextToken is made of: the last hidden states and the log-probabilities of the first cluster and the tails' entries."""
        (hidden,) = self._to_hidden(inputs, rows)
        hidden = self.vocabulary.final_norm(hidden)
        return hidden, self.vocabulary.head_log_probs(hidden)

    def decode_step(self, rows: int) -> MidStreamStep:
        """One pass of the layers, without embedding and vocabulary, over a row of each of `rows` sequences in mid-stream; for benchmarks.

        Each has a slot of its own, opened here and given back by close(). Rings and hidden rows are random, and positions lie beyond every
        window: every row reads its own ring over the whole window. After calls, check_after_replays() says whether they can be trusted.
        """
        slots = np.array([self.open() for _ in range(rows)])
        with torch.no_grad(), self._on_device():
            random = torch.Generator(self.device).manual_seed(rows)
            for rings in self._rings:
                if rings is not None:
                    randomise(rings, slots, random)
            hidden = torch.randn((rows, self.stack.hidden), generator=random, device=self.device)
        beyond = max((layer.capacity for layer in self.layers if layer.start is not None), default=0)
        steps = self._recorded(self._layers_alone, indices=0)

        def close() -> None:
            self._steps.remove(steps)
            for slot in slots.tolist():
                self.close(slot)

        return MidStreamStep(steps, hidden, slots, beyond + np.arange(rows), self._on_device, close)

    def check_after_replays(self) -> None:
        """Raises what a replayed step could not report; kernels that report nothing leave it empty."""

    def bytes_of_a_step(self, rows: int) -> int:
        """What the layers' kernels cannot but read for one row of each of `rows` sequences: weights once, rings once each."""
        weights = sum(layer.weight_bytes for layer in self.layers)
        return weights + rows * sum(layer.bytes_of_a_ring for layer in self.layers)

    def describe(self) -> dict[str, Any]:
        return {
            **self.kernels.describe(),
            **self._storage.describe(),
            "weight_bytes": sum(layer.weight_bytes for layer in self.layers) + self.vocabulary.weight_bytes,
            "launches": dict(self.kernels.calls),
            "launches_of_last_step": self._around.launches.of_layers,
        }


class GpuLayer:
    """One layer: attention and an optional feed-forward, norms and residuals inside their kernels."""

    def __init__(self, plan: LayerShape, weights: dict[str, torch.Tensor], matrices: dict[str, Matrix], kernels: GpuKernels) -> None:
        """weights and matrices as Storage.layer has them."""
        self.plan = plan
        self.kernels = kernels
        self.weight_bytes = sum(matrix.nbytes for matrix in matrices.values())
        self.bytes_of_a_ring = 0  # keys and values of one sequence that a step reads
        self.start: Start | None = None  # a layer without heads keeps nothing, nor does a bidirectional one
        self.output_bias = weights.get("attention.output_bias")
        self.attention_norm = Norm(weights["attention_norm"], weights["attention_norm_bias"], plan.norm_eps)
        if plan.attention is not None:
            start = start_of(plan.attention, weights)
            self.start = start if isinstance(start, Start) else None
            self.visibility = plan.attention.visibility
            if self.start is not None:
                self.bytes_of_a_ring = 2 * self.start.zero_key.nbytes * self.visibility.reach
            self.tables = tables_in(tables_of(plan.attention, weights), matrices)
            self.capacity = self.visibility.reach + self.visibility.first_distance  # a row's own key never displaces one it sees
            self.qkv = stacked([matrices[f"attention.{name}"] for name in ("query", "key", "value")], plan.attention.heads)
            biases = [weights.get(f"attention.{name}_bias") for name in ("query", "key", "value")]
            self.qkv_bias = None if biases[0] is None else torch.stack([bias for bias in biases if bias is not None])
            self.output = matrices["attention.output"]
        if plan.feed_forward:
            self.feed_forward_norm = Norm(weights["feed_forward_norm"], weights["feed_forward_norm_bias"], plan.norm_eps)
            self.up, self.down = matrices["feed_forward.up"], matrices["feed_forward.down"]
            self.up_bias, self.down_bias = weights.get("feed_forward.up_bias"), weights.get("feed_forward.down_bias")

    def __call__(self, hidden: torch.Tensor, rows: Rows, rings: Rings | None) -> torch.Tensor:
        """hidden [rows, hidden] float32 → the same after this layer."""
        if self.plan.norm_first:
            hidden = self._attention(hidden, self.attention_norm, rows, rings)
            return self._feed_forward(hidden, self.feed_forward_norm) if self.plan.feed_forward else hidden
        hidden = self.kernels.normalise(self._attention(hidden, None, rows, rings), self.attention_norm)
        if self.plan.feed_forward:
            hidden = self.kernels.normalise(self._feed_forward(hidden, None), self.feed_forward_norm)
        return hidden

    def _attention(self, hidden: torch.Tensor, norm: Norm | None, rows: Rows, rings: Rings | None) -> torch.Tensor:
        """hidden + attention(norm(hidden))."""
        if self.plan.attention is None:  # no head: no kernel
            return hidden if self.output_bias is None else hidden + self.output_bias.float()
        attended = self._bidirectional(hidden, norm, rows) if rings is None else self._streamed(hidden, norm, rows, rings)
        return self.kernels.project(attended.flatten(1), self.output, self.output_bias, residual=hidden)

    def _bidirectional(self, hidden: torch.Tensor, norm: Norm | None, rows: Rows) -> torch.Tensor:
        """Rows [rows, H, D] that attend to whole sequences."""
        assert rows.several is not None
        new = self._packed(len(hidden)), self._packed(len(hidden))
        query = self.kernels.project_heads(hidden, self.qkv, self.qkv_bias, norm, new, rows.order, rows.positions)
        return self.kernels.attend_bidirectional(query, new, rows.several, rows.lengths)

    def _streamed(self, hidden: torch.Tensor, norm: Norm | None, rows: Rows, rings: Rings) -> torch.Tensor:
        """Rows [rows, H, D] that attend to what their streams keep and to new rows, which are then kept."""
        kept = rings.keys, rings.values
        new = None if rows.several is None else (self._packed(len(hidden)), self._packed(len(hidden)))
        written, places = (kept, rows.slots) if new is None else (new, rows.order)
        query = self.kernels.project_heads(hidden, self.qkv, self.qkv_bias, norm, written, places, rows.positions)
        if new is not None and rows.single is not None:
            self.kernels.write_rings(new, kept, rows.single.first_rows, rows.slots, rows.positions)
        attended = self.kernels.attend(query, kept, new, rows.single, rows.several, rows.lengths, self.tables, self.visibility)
        if new is not None:
            self.kernels.write_rings(new, kept, rows.tail(self.capacity), rows.slots, rows.positions)
        return attended

    def _feed_forward(self, hidden: torch.Tensor, norm: Norm | None) -> torch.Tensor:
        """hidden + feed_forward(norm(hidden))."""
        inner = self.kernels.project(hidden, self.up, self.up_bias, norm=norm, activation=self.plan.activation, dtype=self.up.dtype)
        return self.kernels.project(inner, self.down, self.down_bias, residual=hidden)

    def _packed(self, rows: int) -> torch.Tensor:
        """Keys or values of new rows as rings of capacity 1, [rows, H, 1, D]."""
        _, heads, head_dim, _ = self.qkv.shape
        return torch.empty((rows, heads, 1, head_dim), dtype=self.qkv.dtype, device=self.attention_norm.gain.device)
