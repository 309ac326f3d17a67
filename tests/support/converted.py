"""Runs of converted checkpoints that the converter tests share."""

from __future__ import annotations

import numpy as np

from engine.backends.fold import fold
from engine.backends.plan import compile_stack
from engine.backends.runner import Batch, Limits
from engine.backends.torch.runner import build
from engine.checkpoint import Checkpoint
from tests.support.sources import AihaSource


def run(checkpoint: Checkpoint, ids: np.ndarray, pieces: int | None = None) -> np.ndarray:
    """log_probs [T, vocab] of one row, in one step or in steps of `pieces` tokens."""
    runner = build(compile_stack(checkpoint.spec), fold(checkpoint), Limits("float32"))
    slot, found = runner.open(), []
    for start in range(0, len(ids), pieces or len(ids)):
        part = np.asarray(ids[start : start + (pieces or len(ids))], np.int64)
        batch = Batch(part, np.array([slot]), np.array([start]), np.array([len(part)]), "log_probs")
        found.append(runner.step(batch).log_probs)
    return np.concatenate(found)


def tokens(source: AihaSource, count: int = 19) -> np.ndarray:
    return np.random.default_rng(5).integers(0, source.vocab, count)


def close(found: np.ndarray | float, expected: np.ndarray | float, bound: float = 5e-5) -> None:
    """Equal to within `bound`, shapes included."""
    assert np.shape(found) == np.shape(expected)
    assert np.abs(np.asarray(found) - expected).max() <= bound
