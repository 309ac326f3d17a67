"""Without a GPU the kernels run in Triton's interpreter, which tests/conftest.py chooses before triton is first imported."""

from __future__ import annotations

import importlib
import os
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.support.poison import poisoned_memory  # noqa: F401 (a fixture of all tests here)


@pytest.fixture
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 in the interpreter: it keeps such numbers as uint16, multiplies those bit patterns, and cuts off what a GPU rounds.

    Replaced are its matrix product and its two conversions, all that our kernels do with bfloat16 beside moving it. On a device nothing is.
    """
    if os.environ.get("TRITON_INTERPRET") != "1":
        return
    interpreter = importlib.import_module("triton.runtime.interpreter")
    tl = importlib.import_module("triton.language")
    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    dot, cast, convert = builder.create_dot, builder.cast_impl, builder.create_fp_to_fp

    def widened(x: Any) -> Any:
        return handle(x.data.view(ml_dtypes.bfloat16).astype(np.float32), tl.float32) if x.dtype.scalar == tl.bfloat16 else x

    def rounded(x: Any) -> Any:
        return handle(x.data.astype(np.float32).astype(ml_dtypes.bfloat16).view(np.uint16), tl.bfloat16)

    def to_bfloat16(x: Any, dtype: Any) -> bool:
        return bool(dtype.scalar == tl.bfloat16 and x.dtype.scalar in (tl.float32, tl.float16, tl.int8))

    monkeypatch.setattr(builder, "create_dot", lambda self, a, b, *rest: dot(self, widened(a), widened(b), *rest))
    monkeypatch.setattr(builder, "cast_impl", lambda self, x, to: rounded(x) if to_bfloat16(x, to) else cast(self, x, to))
    monkeypatch.setattr(
        builder, "create_fp_to_fp", lambda self, x, to, mode: rounded(x) if to_bfloat16(x, to) else convert(self, x, to, mode)
    )


@pytest.fixture(autouse=True)
def bounds_of_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until Triton 3.7 the interpreter takes the bound of a loop by int() of an array of one number, which NumPy 2.4 refuses."""
    if not importlib.import_module("triton").__version__.startswith("3.6."):
        return
    interpreter = importlib.import_module("triton.runtime.interpreter")
    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)
