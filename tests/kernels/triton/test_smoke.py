"""Each Triton kernel alone, smallest first: what runs first on a new GPU, the same list as tests/kernels/cuda/test_smoke.py."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="Triton is not installed: pip install 'headcount[gpu]'", exc_type=ImportError)

from engine_kernels.triton_ops.kernels import TritonKernels
from tests.kernels.triton.test_attention import launcher
from tests.support import smoke_cases

by_rows = pytest.mark.parametrize("rows", smoke_cases.ROWS)
by_dtype = pytest.mark.parametrize("dtype", ["bfloat16", "float16"] if smoke_cases.GPU else ["float16"])


@pytest.fixture
def kernels() -> TritonKernels:
    return TritonKernels(launcher())


@by_rows
def test_normalise(rows: int, kernels: TritonKernels) -> None:
    smoke_cases.normalise(kernels, rows)


@by_dtype
@by_rows
def test_write_rings(rows: int, dtype: str, kernels: TritonKernels) -> None:
    smoke_cases.write_rings(kernels, rows, dtype)


@by_dtype
@by_rows
def test_project(rows: int, dtype: str, kernels: TritonKernels) -> None:
    smoke_cases.project(kernels, rows, dtype)


@by_dtype
@by_rows
def test_project_heads(rows: int, dtype: str, kernels: TritonKernels) -> None:
    smoke_cases.project_heads(kernels, rows, dtype)


@by_dtype
@pytest.mark.parametrize("streams", smoke_cases.STREAMS)
def test_attend_ring(streams: int, dtype: str, kernels: TritonKernels) -> None:
    smoke_cases.attend_ring(kernels, streams, dtype)


@by_dtype
@by_rows
def test_attend_rows(rows: int, dtype: str, kernels: TritonKernels) -> None:
    smoke_cases.attend_rows(kernels, rows, dtype)


@by_dtype
@by_rows
def test_attend_bidirectional(rows: int, dtype: str, kernels: TritonKernels) -> None:
    smoke_cases.attend_bidirectional(kernels, rows, dtype)


@by_dtype
@by_rows
def test_score_words(rows: int, dtype: str, kernels: TritonKernels) -> None:
    smoke_cases.score_words(kernels, rows, dtype)
