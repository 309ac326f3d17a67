"""The compiled module against its stub, and what reading ptxas's report makes of a kernel's name."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tests.kernels.cuda.ahead import short
from tests.kernels.cuda.conftest import EMULATED
from tests.kernels.test_native import documented, stubbed

STUB = Path(__file__).parents[3] / "kernels" / "engine_kernels" / "_cuda.pyi"


def test_the_stub_says_what_the_module_has() -> None:
    module = importlib.import_module("engine_kernels._cuda_emulated" if EMULATED else "engine_kernels._cuda")
    found = documented(module)
    for name in ("set_order", "set_multiprocessors"):  # of the emulated one alone
        found.pop(name, None)
    assert stubbed(ast.parse(STUB.read_text()).body) == found


def test_kernels_of_both_types_have_one_name_in_the_table() -> None:
    name = "void cuda::(anonymous namespace)::multiply_and_store<{0}, 64, cuda::PlainStore<{0}> >(cuda::Matrix<{0}>, cuda::Matrix<{0}>)"
    assert {short(name.format(number)) for number in ("__nv_bfloat16", "__half")} == {"multiply_and_store<T, 64, PlainStore<T>>"}
    assert short("cuda::(anonymous namespace)::join_parts(float const*, int)") == "join_parts"
