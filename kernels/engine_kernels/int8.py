"""int8 weights: the rule of csrc/cpu/pack.cc in NumPy, for backends that store the rounded rows as they are."""

from __future__ import annotations

import numpy as np


def quantise(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """rows [.., n, k] float32 → whole numbers [.., n, k] int8 and scales [.., n] float32, row ≈ scale · numbers.

    Symmetric, scale = max|row| / 127, to nearest, ties to even; the scale of a row of zeros is 0.
    """
    scale = np.abs(rows).max(axis=-1, initial=0).astype(np.float32) / np.float32(127)
    steps = np.divide(rows, scale[..., None], out=np.zeros_like(rows, np.float32), where=scale[..., None] > 0)
    return np.rint(steps).clip(-127, 127).astype(np.int8), scale
