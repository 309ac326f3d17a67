"""A small source with PyTorch tensors and the engine directory made of it, for the tests of this folder."""

from pathlib import Path

import pytest

import engine
from tests.support.command import write_source


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path / "source")


@pytest.fixture
def compact(source: Path, tmp_path: Path) -> Path:
    """An engine directory."""
    engine.convert(source, tmp_path / "compact")
    return tmp_path / "compact"
