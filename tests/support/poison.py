"""A fixture for the tests of GPU kernels, imported by their conftest.py files."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor a launcher asks for without a value holds NaN, so that a place that is not written cannot pass for a zero."""
    torch = pytest.importorskip("torch")

    def poisoned(make: Any) -> Any:
        def made(*sizes: Any, **options: Any) -> Any:
            tensor = make(*sizes, **options)
            return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

        return made

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))
