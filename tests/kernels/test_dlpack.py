"""Tensors of other libraries at the native boundary: taken in place where they can be, else refused by the argument's name."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine_kernels import _native, native
from engine_kernels.errors import KernelError

ROOT = Path(__file__).parents[2]
X = np.arange(6, dtype=np.float32).reshape(2, 3)
W = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
capsule_name = ctypes.pythonapi.PyCapsule_GetName
capsule_name.restype, capsule_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype, new_capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
KEPT = ctypes.create_string_buffer(8), b"tensor"  # memory and name of a capsule that is none of DLPack's


class Tensor:
    """A library's tensor that hands over a NumPy array by __dlpack__ alone; `old` knows no max_version."""

    def __init__(self, array: np.ndarray, device: Any = (1, 0), *, old: bool = False) -> None:
        self.array, self.shape, self.device, self.old = array, array.shape, device, old
        self.capsules: list[object] = []

    def __dlpack_device__(self) -> Any:
        return self.device

    def __dlpack__(self, **options: Any) -> object:
        if self.old and options:
            raise TypeError("__dlpack__() takes no arguments")
        self.capsules.append(self.array.__dlpack__(**options))
        return self.capsules[-1]


def product(x: Any) -> np.ndarray:
    return native.linear(x, W)


def refused(x: Any) -> str:
    with pytest.raises(KernelError) as caught:
        product(x)
    assert caught.value.argument == "x"
    return str(caught.value)


@pytest.mark.parametrize("old", [False, True])
def test_a_tensor_of_another_library_is_read_in_place(old: bool) -> None:
    tensor = Tensor(X.copy(), old=old)
    alive = weakref.ref(tensor.array)
    np.testing.assert_array_equal(product(tensor), product(X))
    names = [capsule_name(capsule) for capsule in tensor.capsules]
    assert names == [b"used_dltensor" if old or b"versioned" not in names[0] else b"used_dltensor_versioned"]
    del tensor
    gc.collect()
    assert alive() is None  # nothing of it is kept


def test_what_is_written_is_written_in_place() -> None:
    out = np.full((2, 4), np.nan, np.float32)
    _native.linear(X, W, Tensor(out, old=True))
    np.testing.assert_array_equal(out, product(X))


def test_refusals_name_the_argument_and_free_what_they_took() -> None:
    wrong: dict[str, Callable[[], np.ndarray]] = {
        "float32": lambda: X.astype(np.float64),
        "shape [?, ?]": lambda: X[0].copy(),
        "contiguous": lambda: np.zeros((2, 6), np.float32)[:, ::2],
    }
    for said, make in wrong.items():
        tensor = Tensor(make())
        alive = weakref.ref(tensor.array)
        assert said in refused(tensor)
        del tensor
        gc.collect()
        assert alive() is None


def test_another_device() -> None:
    assert "on the CPU" in (said := refused(Tensor(X, (2, 0)))) and "type 2" in said
    for device in (None, (1,), ("cuda", 0), 1):
        assert "device" in refused(Tensor(X, device))


def test_capsules_that_are_none() -> None:
    class Consumed(Tensor):
        def __dlpack__(self, **options: Any) -> object:
            return self.capsules[0] if self.capsules else super().__dlpack__(**options)

    class Misnamed(Tensor):
        def __dlpack__(self, **options: Any) -> object:
            return new_capsule(ctypes.addressof(KEPT[0]), KEPT[1], None)

    class Nothing(Tensor):
        def __dlpack__(self, **options: Any) -> object:
            return None

    class Failing(Tensor):
        def __dlpack__(self, **options: Any) -> object:
            raise BufferError("the tensor was donated\nand more")

    consumed = Consumed(X)
    np.testing.assert_array_equal(product(consumed), product(X))
    assert "unused capsule" in (said := refused(consumed)) and "'used_dltensor" in said
    for given, said in ((Misnamed, "'tensor'"), (Nothing, "NoneType"), (Failing, "was donated")):
        assert said in refused(given(X)) and "and more" not in refused(given(X))


def test_what_is_no_tensor() -> None:
    for given in (None, 3, [[1.0, 2.0, 3.0]], "text", object()):
        assert "an array or a tensor" in refused(given)
    shaped = type("Shaped", (), {"shape": (2, 3)})()
    assert "an array or a tensor" in refused(shaped)
    assert "format" in refused(np.array([[None, None, None]]))


def test_a_capsule_of_the_exchange_that_is_none() -> None:
    for exchange in (None, 3, new_capsule(ctypes.addressof(KEPT[0]), KEPT[1], None)):
        tensor = type("Exchanged", (), {"shape": (2, 3), "__dlpack_c_exchange_api__": exchange})()
        assert "dlpack_exchange_api" in refused(tensor)


def test_read_only_memory_is_not_written() -> None:
    out = np.empty((2, 4), np.float32)
    out.flags.writeable = False
    with pytest.raises(KernelError, match="y: expected an array that may be written"):
        _native.linear(X, W, out)


def test_torch_tensors() -> None:
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(X)
    np.testing.assert_array_equal(product(x), product(X))
    np.testing.assert_array_equal(native.linear(x, torch.from_numpy(W)), product(X))
    np.testing.assert_array_equal(product(torch.from_numpy(np.vstack((W[:1], X)))[1:]), product(X))  # an offset into its memory
    np.testing.assert_array_equal(product(torch.nn.Parameter(x.clone(), requires_grad=False)), product(X))
    out = torch.full((2, 4), torch.nan)
    _native.linear(x, W, out)
    np.testing.assert_array_equal(out.numpy(), product(X))
    freed = x.clone()
    freed.untyped_storage().resize_(0)
    wrong = {
        "float32": x.double(),
        "16 bits": x.bfloat16(),
        "contiguous": torch.zeros(3, 2).T,
        "meta": x.to("meta"),
        "the tensor was freed": freed,
        "shape [?, ?]": x[0],
    }
    for said, tensor in wrong.items():
        assert said in refused(tensor) and "\n" not in refused(tensor)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="a process's libraries are read from /proc")
def test_the_module_links_no_torch() -> None:
    paths = [str(ROOT), str(ROOT / "kernels")]
    code = f"import sys; sys.path[:0] = {paths!r}; import engine_kernels.native; print('libtorch' in open('/proc/self/maps').read())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
