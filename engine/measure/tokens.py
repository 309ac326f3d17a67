"""Random token ids to measure with."""

from __future__ import annotations

import numpy as np


def random_ids(vocab: int, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Token ids with the frequencies of words in a text: log-uniform, id 0 the most frequent (Zipf's law)."""
    uniform = np.random.default_rng(seed).random(shape)
    return np.minimum((vocab + 1.0) ** uniform - 1.0, vocab - 1).astype(np.int64)
