"""Running a checkpoint through a Runner in the ways a model is used: whole, token by token, in ragged chunks of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from engine.backends.fold import fold
from engine.backends.plan import compile_stack
from engine.backends.runner import Batch, Limits, Runner, StepResult, Want
from engine.checkpoint import Checkpoint

Tap = Callable[[int, np.ndarray], None]


def torch_runner(checkpoint: Checkpoint, dtype: str = "float32") -> Runner:
    """The `torch` backend of a checkpoint."""
    from engine.backends.torch.runner import build  # here, so that other backends are tested in processes without torch

    return build(compile_stack(checkpoint.spec), fold(checkpoint), Limits(dtype, threads=1))


def step(
    runner: Runner,
    ids: Sequence[np.ndarray],
    slots: Sequence[int],
    starts: Sequence[int],
    want: Want = "log_probs",
    targets: np.ndarray | None = None,
    tap: Tap | None = None,
) -> StepResult:
    """One step of several sequences, each continuing its slot at its start."""
    lengths = np.array([len(part) for part in ids], np.int64)
    packed = np.concatenate(ids).astype(np.int64)
    return runner.step(Batch(packed, np.array(slots, np.int64), np.array(starts, np.int64), lengths, want, targets, tap))


def whole(runner: Runner, ids: np.ndarray, tap: Tap | None = None) -> np.ndarray:
    """log_probs [T, vocab] of one sequence in one step."""
    slot = runner.open()
    result = step(runner, [ids], [slot], [0], tap=tap).log_probs
    runner.close(slot)
    assert result is not None
    return result


def one_by_one(runner: Runner, ids: np.ndarray) -> np.ndarray:
    """log_probs [T, vocab] of one sequence, a step per token."""
    slot = runner.open()
    rows = [step(runner, [ids[t : t + 1]], [slot], [t]).log_probs for t in range(len(ids))]
    runner.close(slot)
    return np.concatenate(rows)


def ragged(runner: Runner, sequences: Sequence[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """log_probs of several sequences that advance together by random chunks, some pausing, their slots in any order."""
    slots = [runner.open() for _ in sequences]
    done = [0] * len(sequences)
    rows: list[list[np.ndarray]] = [[] for _ in sequences]
    while any(d < len(s) for d, s in zip(done, sequences, strict=True)):
        active = [i for i in rng.permutation(len(sequences)).tolist() if done[i] < len(sequences[i]) and rng.random() < 0.8]
        if not active:
            continue
        parts = [sequences[i][done[i] : done[i] + int(rng.choice((1, 1, 2, 3, 8, 40)))] for i in active]
        result = step(runner, parts, [slots[i] for i in active], [done[i] for i in active]).log_probs
        assert result is not None
        for i, part, piece in zip(active, parts, np.split(result, np.cumsum([len(p) for p in parts])[:-1]), strict=True):
            rows[i].append(piece)
            done[i] += len(part)
    for slot in slots:
        runner.close(slot)
    return [np.concatenate(r) for r in rows]


def from_next(runner: Runner, ids: np.ndarray) -> np.ndarray:
    """log_probs [vocab] after the last token, put together from the head and every tail of `want=next`."""
    slot = runner.open()
    result = step(runner, [ids], [slot], [0], want="next").next
    runner.close(slot)
    assert result is not None
    outputs = runner.stack.head.clusters
    parts = [result.head[0, : outputs[0].size]]
    for index, cluster in enumerate(outputs[1:], start=1):
        parts.append(result.head[0, cluster.entry] + result.tail(index, np.array([0]))[0])
    return np.concatenate(parts)
