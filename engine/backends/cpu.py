"""The `cpu` backend: embedding, all layers and the head, each in one call of native code; NumPy only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from engine.backends.plan import Stack
from engine.backends.runner import Batch, Folded, Limits, NextToken, Runner, StepResult, position_rows
from engine.backends.slots import Slots
from engine.errors import BackendUnavailable, EngineError, Problem
from engine_kernels import native
from engine_kernels.backends import CPU_DTYPES
from engine_kernels.errors import KernelError


def build(stack: Stack, folded: Folded, limits: Limits) -> Runner:
    """A CpuRunner; raises BackendUnavailable for a device or a dtype it does not run."""
    if limits.device not in ("auto", "cpu"):
        raise BackendUnavailable(Problem("device", "auto or cpu for backend cpu", repr(limits.device)))
    if limits.dtype not in CPU_DTYPES:
        problem = Problem("dtype", " or ".join(CPU_DTYPES) + " for backend cpu", limits.dtype)
        raise BackendUnavailable(problem, hint='use float32 or bfloat16, or backend="torch"')
    return CpuRunner(stack, folded, limits)


class CpuRunner:
    """Runner over native code: weights packed in one dtype; keys, values and the residual stream in float32."""

    device = "cpu"

    def __init__(self, stack: Stack, folded: Folded, limits: Limits) -> None:
        self.stack = stack
        self._weights = _described(limits)
        self._slots = Slots()
        with _engine_errors():
            self._model = native.NativeModel(stack.hidden, limits.dtype, limits.threads, limits.quantization)
            for shape, arrays in zip(stack.layers, folded.layers, strict=True):
                self._model.add_layer(shape, arrays)
            embedding = {name: array for name, array in folded.model.items() if name.startswith("embedding.")}
            self._model.set_head(stack.head, {name: array for name, array in folded.model.items() if name not in embedding})
            self._model.set_embedding(stack.embedding, embedding)

    def open(self) -> int:
        slot = self._slots.open()
        try:
            with _engine_errors():
                self._model.grow(self._slots.capacity)
                self._model.restart(slot)
        except BaseException:
            self._slots.close(slot)
            raise
        return slot

    def reset(self, slot: int) -> None:
        self._slots.reset(slot)
        with _engine_errors():
            self._model.restart(slot)

    def close(self, slot: int) -> None:
        self._slots.close(slot)

    def step(self, batch: Batch) -> StepResult:
        slots = batch.slots
        with _engine_errors():
            if self.stack.causal:
                self._slots.advance(batch)
            else:  # nothing is kept, so any slots do
                slots = np.arange(len(batch.lengths))
                self._model.grow(len(slots))
            hidden = self._embed(batch)  # [rows, hidden]
            if batch.tap is not None:
                batch.tap(-1, hidden.copy())
            taps = self._model.step(hidden, slots, batch.starts, batch.lengths, tapped=batch.tap is not None)
            if batch.tap is not None and taps is not None:
                for index, stream in enumerate(taps):
                    batch.tap(index, stream)
            self._model.final_norm(hidden)
            return self._result(hidden, batch)

    def _embed(self, batch: Batch) -> np.ndarray:
        """[rows, hidden]: the tokens' rows and what the model adds to them."""
        types = None
        if self.stack.embedding.token_types:
            types = np.zeros(len(batch.ids), np.int64) if batch.token_types is None else batch.token_types
        return self._model.embed(batch.ids, position_rows(batch, self.stack.embedding), types)

    def describe(self) -> dict[str, Any]:
        with _engine_errors():
            held, shared = self._model.weight_bytes()
            return {
                "operations": "engine_kernels._native",
                "instruction_set": native.instruction_set(),
                "threads": self._model.threads,
                **self._weights,
                "weight_bytes": held,
                "weight_bytes_shared": shared,  # with other models of this process
                "caches": "float32",
                "calls": native.call_counts(),
            }

    def _result(self, hidden: np.ndarray, batch: Batch) -> StepResult:
        """What the batch wants of the hidden rows [rows, hidden]."""
        if batch.want == "hidden":
            return StepResult(hidden=hidden)
        if batch.want == "logits":
            return StepResult(logits=self._logits(hidden, batch))
        if batch.want == "log_probs":
            return StepResult(log_probs=self._log_probs(hidden))
        if batch.want == "next":
            return StepResult(next=CpuNextToken(self._model, hidden[np.cumsum(batch.lengths) - 1]))
        assert batch.targets is not None
        return StepResult(nll=self._model.target_nll(hidden, batch.targets))

    def _logits(self, hidden: np.ndarray, batch: Batch) -> np.ndarray:
        """Of labels [rows, labels], pooled [sequences, labels]; of the vocabulary [rows, vocab]."""
        if not self.stack.head.labels:
            if self.stack.head.transform is not None:
                self._model.transform(hidden)
            return self._model.logits(hidden)
        if self.stack.head.pooled:
            hidden = hidden[np.cumsum(batch.lengths) - batch.lengths]
        return self._model.labels(hidden)

    def _log_probs(self, hidden: np.ndarray) -> np.ndarray:
        """[rows, vocab]."""
        head, clusters = self._model.head_log_probs(hidden), self.stack.head.clusters
        if len(clusters) == 1:
            return head
        log_probs = np.empty((len(hidden), self.stack.vocab), np.float32)
        log_probs[:, : clusters[0].size] = head[:, : clusters[0].size]
        for index, cluster in enumerate(clusters[1:], start=1):
            tail = self._model.tail_log_probs(hidden, index)
            np.add(tail, head[:, cluster.entry, None], out=log_probs[:, cluster.start : cluster.start + cluster.size])
        return log_probs


class CpuNextToken(NextToken):
    """runner.NextToken over the last hidden row of each sequence."""

    def __init__(self, model: native.NativeModel, hidden: np.ndarray) -> None:
        self._model = model
        self._hidden = hidden
        self.head = model.head_log_probs(hidden)

    def tail(self, cluster: int, sequences: np.ndarray) -> np.ndarray:
        with _engine_errors():
            return self._model.tail_log_probs(self._hidden[np.asarray(sequences, np.int64)], cluster)


def _described(limits: Limits) -> dict[str, str]:
    """What the weights are stored as."""
    if limits.quantization is None:
        return {"weights": f"{limits.dtype}, packed"}
    return {
        "weights": f"{limits.quantization}, a float32 scale per row, packed: projections, persistent keys and values, distances, "
        "feed-forward, output rows of their own",
        "not_quantised": f"{limits.dtype}: embedding, output rows tied to it; float32: biases, norms",
    }


@contextmanager
def _engine_errors() -> Iterator[None]:
    """Native code's refusals as the errors a user of the engine meets."""
    try:
        yield
    except KernelError as error:
        hint = "load the model in the process that uses it" if error.argument == "process" else None
        raise EngineError(Problem(error.argument, error.expected, error.got), hint=hint) from None
