"""The seam between the model and its backends: packed batches in, results out, all state in slots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from engine.backends.plan import EmbeddingPlan, Stack

Arrays = dict[str, np.ndarray]
Want = Literal["hidden", "logits", "log_probs", "target_nll", "next"]


@dataclass(frozen=True)
class Batch:
    """Rows of several sequences, packed one after the other.

    ids [rows] int64.
    slots, starts, lengths [sequences] int64: sequence s continues slot slots[s] at position starts[s] with lengths[s] ≥ 1 rows; a slot
        appears once. A bidirectional stack keeps nothing: each sequence is whole, starts are 0 and slots any different numbers.
    targets [rows] int64, only for target_nll: the token each row must predict, -1 = none (the result is NaN).
    positions, token_types [rows] int64, of a model with such tables: the rows each token reads; None = by its place, and row 0.
    tap: called with (layer index, residual stream [rows, hidden] float32 after that layer); index -1 is the embedding.
    """

    ids: np.ndarray
    slots: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    want: Want
    targets: np.ndarray | None = None
    tap: Callable[[int, np.ndarray], None] | None = None
    positions: np.ndarray | None = None
    token_types: np.ndarray | None = None


def fresh_batch(ids: np.ndarray) -> Batch:
    """Streams ids [B, T] from their start, all hidden states wanted."""
    batch, length = ids.shape
    return Batch(ids.reshape(-1).astype(np.int64), np.arange(batch), np.zeros(batch, np.int64), np.full(batch, length), "hidden")


def position_rows(batch: Batch, plan: EmbeddingPlan) -> np.ndarray | None:
    """The row of the position table each row of a batch reads [rows] int64: the batch's own, or by its place; None without a table."""
    if not plan.positions or batch.positions is not None:
        return batch.positions
    places = [np.arange(start, start + length) for start, length in zip(batch.starts, batch.lengths, strict=True)]
    rows: np.ndarray = np.concatenate(places) + plan.offset
    return rows


class NextToken(Protocol):
    """Log-probabilities of the next token of each sequence, the tails of an adaptive softmax computed only when asked for.

    head [sequences, n0 + tails] float32: log-softmax of the first cluster; ids 0..n0-1, then the tails' entries (ClusterShape.entry).
    """

    head: np.ndarray

    def tail(self, cluster: int, sequences: np.ndarray) -> np.ndarray:
        """Log-softmax inside tail `cluster` ≥ 1 [len(sequences), size] float32, for those sequences; the entry's mass is not added."""
        ...


@dataclass(frozen=True)
class StepResult:
    """What the batch wanted, on the host; exactly one is set. hidden [rows, hidden], log_probs [rows, vocab], nll [rows]; float32.

    logits: of a head of labels [rows, labels], pooled [sequences, labels]; of a vocabulary [rows, vocab] before the softmax.
    """

    hidden: np.ndarray | None = None
    logits: np.ndarray | None = None
    log_probs: np.ndarray | None = None
    nll: np.ndarray | None = None
    next: NextToken | None = None


@dataclass(frozen=True)
class Folded:
    """Weights ready for a backend, formed once in float32 (fold.py) and not yet cast.

    layers[i], formed anew each time it is asked for, and model hold arrays by the names of spec.tensors() without their prefix, with these
    products formed: gains are norm_offset + stored; attention.query and its bias × score_scale; attention.persistent_values × √persistent;
    attention.output columns × head_scale; attention.relative replaced by attention.distances [heads, reach, head_dim] (or, shared,
    [1, reach, head_dim]) with row i for distance first_distance + i;
    attention.zero_key and attention.zero_value [heads, head_dim], the projection of a zero row, where the start attends zeros.
    model: embedding.{c} without its scale, head.{c} with ties resolved to the same array.
    """

    model: Arrays
    layers: Sequence[Arrays]


class Runner(Protocol):
    """A stack built for one backend. Every method may raise EngineError; calls are serialised by the Model."""

    stack: Stack

    def open(self) -> int:
        """Give out a slot whose cache stands at the start of a stream."""
        ...

    def reset(self, slot: int) -> None:
        """Put a slot back to the start of a stream."""
        ...

    def close(self, slot: int) -> None:
        """Take a slot back; its number may be given out again."""
        ...

    def step(self, batch: Batch) -> StepResult:
        """Run the rows of `batch`, extend its slots' caches, return what it wants."""
        ...

    def describe(self) -> dict[str, Any]:
        """What runs what, for explain(): op → implementation, dtype, threads."""
        ...


@dataclass(frozen=True)
class Limits:
    """What a runner may use.

    dtype of weights and caches: 'float32' | 'bfloat16' | 'float16'; device: 'auto' or the backend's own name; threads: None = its default.
    quantization: None, or 'int8' for every matrix that is multiplied with and no embedding, then dtype is that of all else.
    """

    dtype: str
    device: str = "cpu"
    threads: int | None = None
    quantization: str | None = None
