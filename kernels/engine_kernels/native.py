"""NumPy arrays → views → the compiled module."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from engine_kernels import _native
from engine_kernels.errors import KernelError

# dtype → (its code in csrc/common/tensor_view.h, the unsigned type of its bits)
_FLOATS: dict[np.dtype[Any], tuple[int, type[np.unsignedinteger[Any]]]] = {
    np.dtype(np.float32): (0, np.uint32),
    np.dtype(np.float64): (1, np.uint64),
    np.dtype(np.float16): (2, np.uint16),
    np.dtype(ml_dtypes.bfloat16): (3, np.uint16),
}


def all_finite(array: np.ndarray[Any, Any]) -> bool:
    """Whether no element is infinite or NaN; true for no elements.

    array: float32, float64, float16 or bfloat16 of any shape and layout; memory-mapped and read-only ones are read in place, only
    gaps between elements or a misaligned start cost a copy. Raises KernelError for another dtype or byte order.
    """
    known = _FLOATS.get(array.dtype)
    if known is None:
        raise KernelError("array", "float32, float64, float16 or bfloat16 in native byte order", str(array.dtype))
    code, bits = known
    flat = np.require(np.asarray(array).ravel(order="K"), requirements=["C", "A"])
    return _native.all_finite(flat.view(bits), code)
