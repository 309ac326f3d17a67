"""Without a GPU the kernels run on the emulated one, as the module _cuda_emulated; with one, on it.

Where there is a GPU and the module _cuda is missing the tests fail, unless HEADCOUNT_WITHOUT_CUDA=1 says that it is meant.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator
from typing import Any

import pytest

from engine_kernels.backends import no_gpu
from tests.support.poison import poisoned_memory  # noqa: F401 (a fixture of all tests here)

EMULATED = no_gpu() is not None


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    if EMULATED:
        pytest.importorskip("engine_kernels._cuda_emulated", reason="the module _cuda_emulated is not built")
        monkeypatch.setenv("HEADCOUNT_CUDA_EMULATED", "1")
    else:
        demand_module()


def demand_module() -> None:
    if importlib.util.find_spec("engine_kernels._cuda") is not None:
        return
    reason = importlib.import_module("engine_kernels._native").without_cuda()
    if os.environ.get("HEADCOUNT_WITHOUT_CUDA") == "1":
        pytest.skip(f"HEADCOUNT_WITHOUT_CUDA=1, and the module _cuda is not built: {reason}")
    pytest.fail(f"there is a GPU, and the module _cuda is not built: {reason}; set HEADCOUNT_WITHOUT_CUDA=1 if that is meant")


@pytest.fixture(params=[0, 5] if EMULATED else [0], ids=lambda order: f"order {order}")
def order(request: Any) -> Iterator[None]:
    """In two orders of threads on the emulated GPU, which must change nothing."""
    if not EMULATED:
        yield
        return
    module: Any = importlib.import_module("engine_kernels._cuda_emulated")
    module.set_order(request.param)
    yield
    module.set_order(0)
