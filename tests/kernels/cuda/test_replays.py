"""Decode steps of the `cuda` backend give the same bits every time: kernels of each layer, decode_step, and up to the next token."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from engine.backends.gpu.runner import GpuRunner
from tests.kernels.cuda.test_decode import wide
from tests.kernels.cuda.test_runner import rounded, runner_of
from tests.kernels.cuda.test_smoke import model_of
from tests.support.random_specs import random_checkpoint
from tests.support.replays import check_layers, check_next_token

by_rows = pytest.mark.parametrize("rows", [1, 5])
by_model = pytest.mark.parametrize("model", ["published", "random"])


@pytest.fixture(autouse=True)
def poisoned_memory() -> None:
    """Memory as it is: kernels follow one another as in use, with none between them that fills it."""


def by_layer() -> GpuRunner:
    """A model that decode_step refuses: heads of 8."""
    return runner_of(rounded(random_checkpoint(13), "float16"), "float16")


def at_once(model: str) -> GpuRunner:
    return runner_of(model_of("three layers", "bfloat16") if model == "published" else rounded(wide(3), "bfloat16"), "bfloat16")


@by_rows
def test_layers_by_kernels_of_each(rows: int) -> None:
    runner = by_layer()
    check_layers(runner, rows)
    assert "decode_step" not in runner.describe()["launches"]


@by_rows
def test_next_token_by_kernels_of_each_layer(rows: int) -> None:
    check_next_token(by_layer(), rows)


@by_rows
@by_model
def test_layers_by_decode_step(model: str, rows: int) -> None:
    runner = at_once(model)
    check_layers(runner, rows)
    assert set(runner.describe()["launches"]) == {"decode_step"}


@by_rows
@by_model
def test_next_token_by_decode_step(model: str, rows: int) -> None:
    runner = at_once(model)
    check_next_token(runner, rows)
    assert runner.describe()["launches"]["decode_step"]
