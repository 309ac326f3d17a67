"""Without a GPU the kernels run on the CPU that plays one, as the module _cuda_emulated; with one, on it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest

from engine_kernels.backends import no_gpu
from tests.kernels.poison import poisoned_memory  # noqa: F401 (a fixture of all tests here)

EMULATED = no_gpu() is not None


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    if EMULATED:
        pytest.importorskip("engine_kernels._cuda_emulated", reason="the module _cuda_emulated is not built")
        monkeypatch.setenv("ENGINE_CUDA_EMULATED", "1")
    elif importlib.util.find_spec("engine_kernels._cuda") is None:
        pytest.skip("the module _cuda is not built")


@pytest.fixture(params=[0, 5] if EMULATED else [0], ids=lambda order: f"order {order}")
def order(request: Any) -> Iterator[None]:
    """In two orders of threads where the CPU plays a GPU, which must change nothing."""
    if not EMULATED:
        yield
        return
    module: Any = importlib.import_module("engine_kernels._cuda_emulated")
    module.set_order(request.param)
    yield
    module.set_order(0)
