"""Encoders: ids, masks and token types as a caller gives them → packed rows without padding → hidden states or logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.backends.plan import EmbeddingPlan, Stack
from engine.backends.runner import Batch, Want
from engine.errors import InputError, Problem
from engine.runtime.executor import RESULT_FLOATS, STEP_ROWS, Executor, Tap, bidirectional_batch
from engine.runtime.inputs import SHOWN, matching_rows, token_rows
from engine.runtime.scoring import MOST_RESULT_BYTES, Progress


@dataclass(frozen=True)
class Visible:
    """The tokens of one sequence that its mask shows: their columns, ids, rows of the position table and token types, [rows] each."""

    columns: np.ndarray
    ids: np.ndarray
    positions: np.ndarray
    token_types: np.ndarray

    @property
    def rows(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What a step takes."""
        return self.ids, self.positions, self.token_types


def visible_rows(ids: Any, attention_mask: Any, token_type_ids: Any, stack: Stack) -> tuple[list[Visible], int]:
    """The visible tokens of each sequence, and the length of the longest sequence, hidden tokens included.

    ids [B, T] or B lists; attention_mask of the same lengths, 1 = seen; token_type_ids likewise. Raises InputError with every problem.
    """
    rows = token_rows(ids, stack.vocab)
    masks = matching_rows(attention_mask, "attention_mask", rows, most=1, default=1)
    types = matching_rows(token_type_ids, "token_type_ids", rows, most=max(stack.embedding.token_types, 1) - 1, default=0)
    sequences = [_visible(*row, stack.embedding) for row in zip(rows, masks, types, strict=True)]
    if problems := [problem for index, sequence in enumerate(sequences) for problem in _problems(index, sequence, rows[index], stack)]:
        raise InputError(problems[:SHOWN], hint="cut longer texts into parts" if any("positions" in p.expected for p in problems) else None)
    return sequences, max(len(row) for row in rows)


def encode(executor: Executor, sequences: Sequence[Visible], length: int, want: Want, progress: Progress | None = None) -> np.ndarray:
    """Hidden states [B, length, hidden], logits [B, length, labels or vocab], of pooled labels [B, labels]; zeros for hidden tokens."""
    width, pooled = _width(executor.stack, want)
    shape = (len(sequences), width) if pooled else (len(sequences), length, width)
    if (needed := int(np.prod(shape)) * 4) > MOST_RESULT_BYTES:
        raise InputError(Problem("ids", "a result of at most 2 GiB", f"{needed / 2**30:.1f} GiB for {list(shape)} numbers"))
    result = np.zeros(shape, np.float32)
    done, total = 0, sum(len(sequence.ids) for sequence in sequences)
    for group in _groups(sequences, min(STEP_ROWS, max(1, RESULT_FLOATS // width))):
        found = _step(executor, [sequences[i] for i in group], want)
        if pooled:
            result[group] = found
        for i, rows in zip(group, () if pooled else _split(found, [sequences[i] for i in group]), strict=not pooled):
            result[i, sequences[i].columns] = rows
        done += sum(len(sequences[i].ids) for i in group)
        if progress is not None:
            progress(done, total)
    return result


def forward(own: Callable[[Batch], Any], sequences: Sequence[Visible], length: int, stack: Stack) -> Any:
    """Logits, or without a head hidden states, of all sequences in one step, as the backend's own tensor in the shape encode gives."""
    want: Want = "logits" if stack.head.has_logits else "hidden"
    width, pooled = _width(stack, want)
    packed = own(bidirectional_batch([sequence.rows for sequence in sequences], want))
    if pooled:
        return packed
    result = packed.new_zeros((len(sequences), length, width))
    rows = np.repeat(np.arange(len(sequences)), [len(sequence.ids) for sequence in sequences])
    result[rows, np.concatenate([sequence.columns for sequence in sequences])] = packed
    return result


def pooled(hidden: np.ndarray, sequences: Sequence[Visible], pooling: str) -> np.ndarray:
    """hidden [B, T, hidden] → [B, hidden]: the mean over the visible tokens, or the first of them."""
    if pooling == "cls":
        return np.stack([rows[sequence.columns[0]] for rows, sequence in zip(hidden, sequences, strict=True)])
    means = [rows[sequence.columns].mean(0, dtype=np.float64) for rows, sequence in zip(hidden, sequences, strict=True)]
    return np.stack(means).astype(np.float32)


def trace(executor: Executor, sequence: Visible) -> tuple[list[np.ndarray], np.ndarray]:
    """One sequence: residual stream [rows, hidden] after the embedding and after each layer; its logits, or without a head its output."""
    hidden: list[np.ndarray] = []
    want: Want = "logits" if executor.stack.head.has_logits else "hidden"
    return hidden, _step(executor, [sequence], want, lambda _, rows: hidden.append(rows))


def _visible(ids: np.ndarray, mask: np.ndarray, types: np.ndarray, plan: EmbeddingPlan) -> Visible:
    """Positions count hidden tokens too, as the originals count them; XLM-R's pass over the pad token wherever it stands."""
    places = np.arange(len(ids)) if plan.pad is None else np.where(ids == plan.pad, -1, np.cumsum(ids != plan.pad) - 1)
    columns = np.flatnonzero(mask)
    return Visible(columns, ids[columns], (places + plan.offset)[columns], types[columns])


def _problems(index: int, sequence: Visible, row: np.ndarray, stack: Stack) -> Iterator[Problem]:
    if not len(sequence.ids):
        yield Problem(f"attention_mask[{index}]", "at least one token to see", "none")
    elif stack.head.pooled and sequence.columns[0] != 0:
        yield Problem(f"attention_mask[{index}][0]", "1: the head reads the first token", "0")
    elif stack.most_rows is not None and int(sequence.positions.max()) >= stack.embedding.positions:
        yield Problem(f"ids[{index}]", f"at most {stack.most_rows} tokens, the model's positions", str(len(row)))


def _width(stack: Stack, want: Want) -> tuple[int, bool]:
    if want == "hidden":
        return stack.hidden, False
    return stack.head.labels or stack.vocab, stack.head.pooled


def _groups(sequences: Sequence[Visible], most_rows: int) -> Iterator[list[int]]:
    """Sequences of like length together, at most `most_rows` rows in a step (or one sequence)."""
    group: list[int] = []
    rows = 0
    for index in np.argsort([-len(sequence.ids) for sequence in sequences], kind="stable").tolist():
        if group and rows + len(sequences[index].ids) > most_rows:
            yield group
            group, rows = [], 0
        group.append(index)
        rows += len(sequences[index].ids)
    yield group


def _step(executor: Executor, sequences: Sequence[Visible], want: Want, tap: Tap | None = None) -> np.ndarray:
    result = executor.run_bidirectional([sequence.rows for sequence in sequences], want, tap)
    found = result.hidden if want == "hidden" else result.logits
    assert found is not None
    return found


def _split(packed: np.ndarray, sequences: Sequence[Visible]) -> list[np.ndarray]:
    return np.split(packed, np.cumsum([len(sequence.ids) for sequence in sequences])[:-1])
