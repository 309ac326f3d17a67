"""Decode steps of the `triton` backend give the same bits every time, through the layers and up to the next token."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="Triton is not installed: pip install 'headcount[gpu]'", exc_type=ImportError)

from tests.kernels.triton.test_runner import triton_runner
from tests.support.replays import check_layers, check_next_token

by_rows = pytest.mark.parametrize("rows", [1, 5])


@pytest.fixture(autouse=True)
def poisoned_memory() -> None:
    """Memory as it is: kernels follow one another as in use, with none between them that fills it."""


@by_rows
def test_layers(rows: int) -> None:
    check_layers(triton_runner(11, "float16"), rows)


@by_rows
def test_next_token(rows: int) -> None:
    check_next_token(triton_runner(11, "float16"), rows)
