"""The one tolerance rule, for tests, the benchmark's correctness gate and verification alike; NumPy only.

    max|x - o| ≤ 2 · max|p - o| + 4 · eps(dtype) · max|o|

x: the result under test. o: the float64 oracle on the same rounded inputs. p: plain arithmetic in x's dtype (PyTorch's, or that of the
oracle's own loops). A NaN anywhere never passes; an infinity must stand where the oracle has the same one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def difference(result: ArrayLike, oracle: ArrayLike) -> float:
    """max|result - oracle| of two arrays of one shape; NaN where either holds a NaN or their infinities differ; 0 when empty."""
    x, o = _double(result), _double(oracle)
    if x.shape != o.shape:
        raise ValueError(f"result of shape {list(x.shape)} against an oracle of shape {list(o.shape)}")
    same = np.isinf(o) & (x == o)
    finite = np.isfinite(x) & np.isfinite(o)
    if not np.all(same | finite):
        return float("nan")
    return float(np.abs(x[finite] - o[finite]).max(initial=0.0))


def tolerance(plain: ArrayLike, oracle: ArrayLike, dtype: str) -> float:
    """The largest difference from the oracle a result in `dtype` may have; NaN, which nothing keeps to, if plain or oracle hold NaNs.

    dtype: float64, float32, float16 or bfloat16; anything else raises ValueError.
    """
    if dtype not in EPS:
        raise ValueError(f"dtype: expected {', '.join(EPS)}, got {dtype!r}")
    o = _double(oracle)
    largest = float(np.abs(o[np.isfinite(o)]).max(initial=0.0))
    return 2 * difference(plain, oracle) + 4 * EPS[dtype] * largest


def assert_close(result: ArrayLike, plain: ArrayLike, oracle: ArrayLike, dtype: str, name: str) -> None:
    """Raise AssertionError, with the difference and what was allowed, unless `result` keeps to the rule."""
    found, allowed = difference(result, oracle), tolerance(plain, oracle, dtype)
    if found <= allowed:  # false for NaN on either side
        return
    raise AssertionError(f"{name}: max |result - oracle| = {found:.3e}, allowed {allowed:.3e} in {dtype}{_worst(result, oracle)}")


def _worst(result: ArrayLike, oracle: ArrayLike) -> str:
    """Where the largest difference stands."""
    x, o = _double(result), _double(oracle)
    with np.errstate(invalid="ignore"):
        gap = np.where(x == o, 0.0, np.abs(x - o))
    if not gap.size:
        return ""
    place = np.unravel_index(int(np.argmax(np.where(np.isnan(gap), np.inf, gap))), gap.shape)
    return f"; worst at {[int(i) for i in place]}: {x[place]:.9g} against {o[place]:.9g}"


def _double(array: ArrayLike) -> np.ndarray:
    return np.asarray(array).astype(np.float64)
