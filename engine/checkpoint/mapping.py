"""Files that weights are mapped from, and the memory they take while they are read."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np

from engine.checkpoint.directory import Weights
from engine.checkpoint.surgery import Pruned


def release(weights: Weights) -> None:
    """Let go of the memory that holds mapped files, once a backend has its own copy; what is read again comes from the file."""
    while isinstance(weights, Pruned):
        weights = weights.whole
    mapped = {id(file): file for array in weights.values() if (file := _mapping(array)) is not None}
    for file in mapped.values():
        file.madvise(mmap.MADV_DONTNEED)


def _mapping(array: np.ndarray) -> mmap.mmap | None:
    """The file an array is mapped from, where it is and the system can be told."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED") else None
