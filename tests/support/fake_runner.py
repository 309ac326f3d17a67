"""A Runner in a few lines of NumPy: the next token depends on the last two, through an adaptive softmax; all that is asked is recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.backends.plan import EmbeddingPlan, HeadPlan, Stack
from engine.backends.runner import Batch, StepResult
from engine.backends.slots import Slots
from engine_kernels.shapes import ClusterShape


def plan_outputs(sizes: Sequence[int], order: str = "ascending") -> tuple[ClusterShape, ...]:
    starts = np.cumsum([0, *sizes])
    tails = len(sizes) - 1
    entries = [0] + [sizes[0] + (c - 1 if order == "ascending" else tails - c) for c in range(1, tails + 1)]
    return tuple(ClusterShape(int(starts[c]), size, 4, True, entries[c]) for c, size in enumerate(sizes))


def log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(-1, keepdims=True)
    return (shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))).astype(np.float32)


class FakeNext:
    """NextToken from logits: head [S, n0 + tails], tails[c] [S, size]; counts the tails it computes."""

    def __init__(self, head: np.ndarray, tails: dict[int, np.ndarray]) -> None:
        self.head = log_softmax(head)
        self.computed: list[tuple[int, int]] = []  # (cluster, sequence)
        self.calls = 0
        self._tails = {cluster: log_softmax(rows) for cluster, rows in tails.items()}

    def tail(self, cluster: int, sequences: np.ndarray) -> np.ndarray:
        self.calls += 1
        self.computed += [(cluster, int(s)) for s in sequences]
        return self._tails[cluster][sequences]

    def dense(self, outputs: Sequence[ClusterShape]) -> np.ndarray:
        """The whole vocabulary [S, vocab] float32."""
        parts = [self.head[:, : outputs[0].size]]
        parts += [self.head[:, plan.entry, None] + self._tails[c] for c, plan in enumerate(outputs) if c]
        return np.concatenate(parts, 1)


class FakeRunner:
    """The hidden state of a row is the row of a random table for (id, previous id); previous of the first is -1."""

    def __init__(self, sizes: Sequence[int] = (5, 3, 4), *, order: str = "ascending", seed: int = 0, sharpness: float = 2.0) -> None:
        outputs = plan_outputs(sizes, order)
        vocab = sum(sizes)
        self.stack = Stack(
            hidden=4, vocab=vocab, layers=(), embedding=EmbeddingPlan(outputs), head=HeadPlan(outputs, clusters_read_hidden=True)
        )
        random = np.random.default_rng(seed)
        self.table = random.normal(size=(vocab, vocab + 1, 4))
        self.rows = [sharpness * random.normal(size=(4, size + (len(sizes) - 1 if c == 0 else 0))) for c, size in enumerate(sizes)]
        self.batches: list[Batch] = []
        self.nexts: list[FakeNext] = []
        self.opened = 0
        self._slots = Slots()
        self._last: dict[int, int] = {}

    @property
    def open_slots(self) -> int:
        return len(self._last)

    def open(self) -> int:
        slot = self._slots.open()
        self._last[slot] = -1
        self.opened += 1
        return slot

    def reset(self, slot: int) -> None:
        self._slots.reset(slot)
        self._last[slot] = -1

    def close(self, slot: int) -> None:
        self._slots.close(slot)
        del self._last[slot]

    def step(self, batch: Batch) -> StepResult:
        self._slots.advance(batch)
        self.batches.append(batch)
        hidden, ends, at = np.empty((len(batch.ids), 4)), [], 0
        for slot, length in zip(batch.slots.tolist(), batch.lengths.tolist(), strict=True):
            for row in range(at, at + length):
                hidden[row] = self.table[batch.ids[row], self._last[slot]]
                self._last[slot] = int(batch.ids[row])
            at += length
            ends.append(at - 1)
        if batch.tap is not None:
            batch.tap(-1, hidden)
        if batch.want == "hidden":
            return StepResult(hidden=hidden.astype(np.float32))
        following = self.following(hidden[ends] if batch.want == "next" else hidden)
        if batch.want == "next":
            self.nexts.append(following)
            return StepResult(next=following)
        dense = following.dense(self.stack.head.clusters)
        if batch.want == "log_probs":
            return StepResult(log_probs=dense)
        assert batch.targets is not None
        return StepResult(nll=-dense[np.arange(len(dense)), batch.targets])

    def describe(self) -> dict[str, Any]:
        return {"operations": "fake"}

    def following(self, hidden: np.ndarray) -> FakeNext:
        return FakeNext(hidden @ self.rows[0], {c: hidden @ rows for c, rows in enumerate(self.rows) if c})

    def log_probs(self, ids: Sequence[int]) -> np.ndarray:
        """The whole answer [T, vocab], without slots or chunks."""
        previous = [-1, *ids[:-1]]
        return self.following(self.table[list(ids), previous]).dense(self.stack.head.clusters)
