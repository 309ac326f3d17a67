"""The native module: `all_finite` against NumPy, and the stub against the module."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from engine_kernels import _native, native
from engine_kernels.errors import KernelError

STUB = Path(__file__).parents[2] / "kernels" / "engine_kernels" / "_native.pyi"
DTYPES = [np.dtype(t) for t in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)]
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)


@by_dtype
@pytest.mark.parametrize("size", [0, 1, 2, 63, 65, 4096, 4097])
def test_finds_one_bad_value_anywhere(dtype: np.dtype, size: int) -> None:
    array = np.full(size, ml_dtypes.finfo(dtype).max, dtype)
    assert native.all_finite(array)
    for at in {0, size // 2, size - 1} if size else ():
        for bad in (np.inf, -np.inf, np.nan):
            array[at] = bad
            assert not native.all_finite(array), (at, bad)
            array[at] = -0.0
    assert native.all_finite(array)


@by_dtype
def test_every_layout_is_read_by_its_own_elements(dtype: np.dtype) -> None:
    grid = np.ones((7, 6, 5), dtype)
    grid[3, 1, 2] = np.nan
    assert not native.all_finite(grid)
    assert not native.all_finite(grid.transpose(2, 0, 1))
    assert not native.all_finite(np.asfortranarray(grid))
    assert not native.all_finite(grid[::-3, 1])
    assert native.all_finite(grid[::2])  # the value between the strides does not count
    assert native.all_finite(grid[..., :2])
    assert native.all_finite(np.array(1.0, dtype))


@by_dtype
def test_reads_a_read_only_memory_map_even_when_misaligned(dtype: np.dtype, tmp_path: Path) -> None:
    values = np.ones(65, dtype)
    values[64] = np.inf
    path = tmp_path / "weights.bin"
    path.write_bytes(b"\0" * 64 + values.tobytes() + b"\0" + values.tobytes())
    for offset in (64, 65 + values.nbytes):
        mapped = np.memmap(path, mode="r", dtype=dtype, offset=offset, shape=(65,))
        assert not native.all_finite(mapped)
        assert native.all_finite(mapped[:64])


@pytest.mark.parametrize("dtype", ["int64", "bool", "complex64", ">f4", "object", "U3"])
def test_refuses_other_dtypes_by_name(dtype: str) -> None:
    array = np.zeros(3, dtype)
    with pytest.raises(KernelError) as caught:
        native.all_finite(array)
    assert caught.value.argument == "array"
    assert caught.value.got == str(array.dtype)
    assert "bfloat16" in str(caught.value) and str(array.dtype) in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("data", "code", "argument", "expected"),
    [
        (np.zeros(3, np.uint32), 4, "dtype", "a code from 0 to 3"),
        (np.zeros(3, np.uint32), -1, "dtype", "a code from 0 to 3"),
        (np.zeros(3, np.uint16), 0, "data", "elements of 4 bytes"),
        (np.zeros(6, np.uint32)[::2], 0, "data", "a contiguous buffer of one dimension"),
        (np.zeros((2, 3), np.uint32), 0, "data", "a contiguous buffer of one dimension"),
        (np.frombuffer(bytes(9), np.uint8)[1:].view(np.uint32), 0, "data", "data aligned to 4 bytes"),
    ],
    ids=["high code", "negative code", "size", "strided", "two dimensions", "misaligned"],
)
def test_the_module_checks_for_itself(data: np.ndarray, code: int, argument: str, expected: str) -> None:
    with pytest.raises(KernelError) as caught:
        _native.all_finite(data, code)
    assert (caught.value.argument, caught.value.expected) == (argument, expected)
    assert str(caught.value) == f"{argument}: expected {expected}, got {caught.value.got}"


def test_stub_names_what_the_module_has() -> None:
    stub = stubbed(ast.parse(STUB.read_text()).body)
    assert stub == documented(_native)


def stubbed(body: list[ast.stmt], prefix: str = "") -> dict[str, list[str]]:
    """Name → parameters of the functions, methods and properties a stub declares."""
    found: dict[str, list[str]] = {}
    for node in body:
        if isinstance(node, ast.ClassDef):
            found |= stubbed(node.body, f"{node.name}.")
        elif isinstance(node, ast.FunctionDef):
            found[prefix + node.name] = [a.arg for a in (*node.args.args, *node.args.kwonlyargs) if a.arg != "self"]
    return found


def documented(owner: object, prefix: str = "") -> dict[str, list[str]]:
    """The same from what pybind11 writes into the docstrings."""
    found: dict[str, list[str]] = {}
    for name, member in vars(owner).items():
        if isinstance(member, type):
            found |= documented(member, f"{name}.")
        elif name == "__init__" or not name.startswith("_"):
            first_line = str(member.__doc__).split(" -> ")[0]
            found[prefix + name] = [word for word in re.findall(r"(\w+): ", first_line) if word != "self"]
    return found
