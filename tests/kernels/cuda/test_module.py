"""The compiled module against its stub, and what happens where it is missing."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tests.kernels.cuda.conftest import EMULATED, demand_module
from tests.kernels.test_native import documented, stubbed

STUB = Path(__file__).parents[3] / "kernels" / "engine_kernels" / "_cuda.pyi"


def test_the_stub_says_what_the_module_has() -> None:
    module = importlib.import_module("engine_kernels._cuda_emulated" if EMULATED else "engine_kernels._cuda")
    found = documented(module)
    for name in ("set_order", "set_clusters", "set_multiprocessors"):  # of the emulated one alone
        found.pop(name, None)
    assert stubbed(ast.parse(STUB.read_text()).body) == found


def test_with_a_gpu_and_without_the_module_tests_fail_unless_that_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "engine_kernels._cuda" else found(name))
    monkeypatch.delenv("HEADCOUNT_WITHOUT_CUDA", raising=False)
    with pytest.raises(pytest.fail.Exception, match=r"module _cuda is not built: .*HEADCOUNT_WITHOUT_CUDA=1"):
        demand_module()
    monkeypatch.setenv("HEADCOUNT_WITHOUT_CUDA", "1")
    with pytest.raises(pytest.skip.Exception, match="module _cuda is not built"):
        demand_module()
