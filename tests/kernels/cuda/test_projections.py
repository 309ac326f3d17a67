"""Products, norms, rings and vocabulary of the CUDA kernels against float64, on the inputs as they are rounded."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from engine_kernels.cuda_ops import CudaKernels
from engine_kernels.errors import KernelError
from engine_kernels.gpu_ops import Norm
from engine_kernels.testing import assert_close
from tests.support.attention_cases import DEVICE, DTYPES, double

HALVES = ["bfloat16", "float16"]
by_dtype = pytest.mark.parametrize("dtype", HALVES)


def kernels() -> CudaKernels:
    return CudaKernels(torch.device(DEVICE))


def normal(rng: np.random.Generator, *shape: int, dtype: str = "float32", spread: float = 1.0) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal(shape) * spread).to(device=DEVICE, dtype=DTYPES[dtype])


def norm_of(rng: np.random.Generator, depth: int) -> Norm:
    return Norm(1 + normal(rng, depth, spread=0.2), normal(rng, depth, spread=0.2), 1e-5)


def normalised(x: np.ndarray, norm: Norm | None) -> np.ndarray:
    if norm is None:
        return x
    centred = x - x.mean(1, keepdims=True)
    return centred / np.sqrt(centred.var(1, keepdims=True) + norm.eps) * double(norm.gain) + double(norm.shift)


def rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    return double(torch.from_numpy(x).to(DTYPES[dtype]))


# rows × depth → columns: one row, odd counts, both kinds of product on each side of where they change, depths of no multiple of 8.
SHAPES = [
    *((1, 64, 48), (3, 40, 17), (8, 512, 33), (9, 520, 16), (33, 72, 130), (64, 24, 7), (20, 48, 20)),
    *((65, 136, 65), (131, 31, 70), (2, 7, 3)),
]


@by_dtype
@pytest.mark.parametrize(("rows", "depth", "columns"), SHAPES)
def test_project(rows: int, depth: int, columns: int, dtype: str, order: None) -> None:
    """Each of norm, bias, activation, residual and 16-bit rows and results with half of the shapes."""
    rng = np.random.default_rng(rows * depth)
    number = SHAPES.index((rows, depth, columns))
    normed, sixteen = number % 2 == 0, number % 3 == 1
    norm = norm_of(rng, depth) if normed and not sixteen else None
    x = normal(rng, rows, depth, dtype=dtype if sixteen else "float32", spread=2.0) + (0 if sixteen else 3)
    weight, bias = normal(rng, columns, depth, dtype=dtype, spread=depth**-0.5), normal(rng, columns, dtype=dtype)
    residual = normal(rng, rows, columns) if number % 4 < 2 else None
    out = DTYPES[dtype] if number % 4 == 3 else torch.float32
    activation = None if normed else "relu"
    found = kernels().project(x, weight, bias if normed else None, norm=norm, activation=activation, residual=residual, dtype=out)
    assert found.dtype == out
    a = normalised(double(x), norm)
    exact = a @ double(weight).T + (double(bias) if normed else 0)
    plain = rounded(a, dtype) @ double(weight).T + (double(bias) if normed else 0)
    wanted, near = (np.maximum(y, -np.inf if normed else 0) + (0 if residual is None else double(residual)) for y in (exact, plain))
    assert_close(double(found), rounded(near, dtype), wanted, dtype, "project")


@pytest.mark.parametrize("rows", [1, 70])
def test_few_and_many_rows_round_alike(rows: int, order: None) -> None:
    """Products of whole numbers are exact, however they are cut; so are the places they go to."""
    rng = np.random.default_rng(rows)
    x = torch.from_numpy(rng.integers(-4, 5, (rows, 300)).astype(np.float32)).to(DEVICE)
    weight = torch.from_numpy(rng.integers(-4, 5, (90, 300))).to(device=DEVICE, dtype=torch.bfloat16)
    np.testing.assert_array_equal(double(kernels().project(x, weight)), double(x) @ double(weight).T)


@by_dtype
@pytest.mark.parametrize(("rows", "heads", "head_dim", "depth"), [(1, 1, 8, 64), (5, 3, 24, 40), (67, 7, 16, 56), (2, 2, 128, 20)])
def test_project_heads(rows: int, heads: int, head_dim: int, depth: int, dtype: str, order: None) -> None:
    """Slots out of order, rings that wrap, far positions; nothing else in the rings is written."""
    rng = np.random.default_rng(rows)
    norm = norm_of(rng, depth) if rows != 5 else None
    x, weight = normal(rng, rows, depth), normal(rng, 3, heads, head_dim, depth, dtype=dtype, spread=depth**-0.5)
    bias, capacity = normal(rng, 3, heads, head_dim, dtype=dtype) if rows > 1 else None, 3
    rings = tuple(torch.full((rows + 1, heads, capacity, head_dim), torch.nan, dtype=DTYPES[dtype], device=DEVICE) for _ in range(2))
    slots, positions = rng.permutation(rows + 1)[:rows], rng.integers(0, 2**40, rows)
    query = kernels().project_heads(x, weight, bias, norm, (rings[0], rings[1]), *map(whole, (slots, positions)))
    a = normalised(double(x), norm)
    exact, near = (
        np.einsum("rk,whdk->wrhd", y, double(weight)) + (0 if bias is None else double(bias)[:, None]) for y in (a, rounded(a, dtype))
    )
    found = [double(query)] + [double(ring)[slots, :, positions % capacity] for ring in rings]
    assert_close(np.stack(found), rounded(near, dtype), exact, dtype, "project_heads")
    for ring in rings:
        assert int(torch.isfinite(ring).sum()) == rows * heads * head_dim


def whole(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.int64)).to(DEVICE)


@by_dtype
def test_write_rings_moves_the_source_rows_alone(dtype: str, order: None) -> None:
    rng, heads, head_dim, capacity = np.random.default_rng(0), 3, 24, 5
    new = normal(rng, 9, heads, 1, head_dim, dtype=dtype), normal(rng, 9, heads, 1, head_dim, dtype=dtype)
    rings = tuple(torch.full((4, heads, capacity, head_dim), torch.nan, dtype=DTYPES[dtype], device=DEVICE) for _ in range(2))
    source = np.array([2, 3, 7])
    slots, positions = np.array([0, 0, 3, 3, 0, 0, 0, 1, 1]), 2**33 + np.arange(9)
    kernels().write_rings(new, (rings[0], rings[1]), *map(whole, (source, slots, positions)))
    for ring, fresh in zip(rings, new, strict=True):
        np.testing.assert_array_equal(double(ring)[slots[source], :, positions[source] % capacity], double(fresh)[source, :, 0])
        assert int(torch.isfinite(ring).sum()) == 3 * heads * head_dim


@pytest.mark.parametrize(("rows", "depth"), [(1, 8), (5, 512), (3, 513), (6, 1030), (2, 1)])
def test_normalise(rows: int, depth: int, order: None) -> None:
    """Also of rows whose mean is far larger than their spread."""
    rng = np.random.default_rng(depth)
    x, norm = normal(rng, rows, depth) + 100, norm_of(rng, depth)
    exact = normalised(double(x), norm)
    plain = torch.nn.functional.layer_norm(x, (depth,), norm.gain, norm.shift, norm.eps)
    assert_close(double(kernels().normalise(x, norm)), double(plain), exact, "float32", "normalise")


@by_dtype
@pytest.mark.parametrize(("rows", "words", "depth"), [(1, 3, 8), (5, 130, 40), (67, 300, 25), (2, 1000, 64)])
def test_score_words(rows: int, words: int, depth: int, dtype: str, order: None) -> None:
    """Every target somewhere, rows without one, logits of several units; 16-bit rows once."""
    rng = np.random.default_rng(words)
    x, weight = normal(rng, rows, depth, dtype=dtype if rows == 5 else "float32"), normal(rng, words, depth, dtype=dtype, spread=0.7)
    bias, targets = normal(rng, words, dtype=dtype) if rows > 1 else None, rng.integers(-1, words, rows)
    everything, logit = kernels().score_words(x, weight, bias, whole(targets))
    exact, plain = (y @ double(weight).T + (0 if bias is None else double(bias)) for y in (double(x), rounded(double(x), dtype)))
    for found, of in ((everything, log_sum), (logit, lambda logits: picked(logits, targets))):
        assert_close(double(found), rounded(of(plain), dtype), of(exact), dtype, "score_words")


def log_sum(logits: np.ndarray) -> np.ndarray:
    top = logits.max(1)
    return np.asarray(top + np.log(np.exp(logits - top[:, None]).sum(1)))


def picked(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return np.where(targets < 0, 0.0, logits[np.arange(len(targets)), targets])


def test_no_rows_start_nothing() -> None:
    run, weight = kernels(), torch.ones((16, 8), dtype=torch.float16, device=DEVICE)
    assert run.project(torch.empty((0, 8), device=DEVICE), weight).shape == (0, 16)
    assert run.score_words(torch.empty((0, 8), device=DEVICE), weight, None, whole(np.zeros(0)))[0].shape == (0,)


def test_what_cannot_be_run_is_refused_by_argument() -> None:
    run, x = kernels(), torch.ones((2, 16), device=DEVICE)
    weight = torch.ones((8, 16), dtype=torch.float16, device=DEVICE)
    norm = Norm(torch.ones(16, device=DEVICE), torch.ones(16, device=DEVICE), 1e-5)
    for argument, call in {
        "weight: expected bfloat16 or float16": lambda: run.project(x, weight.float()),
        "x: expected shape [?, 16], got [2, 15]": lambda: run.project(x[:, :15].contiguous(), weight),
        "x: expected a contiguous tensor": lambda: run.project(torch.ones((16, 2), device=DEVICE).T, weight),
        "x: expected the kind of 16-bit numbers": lambda: run.project(x.bfloat16(), weight),
        "x: expected float32 where it is normalised": lambda: run.project(x.half(), weight, norm=norm),
        "residual: expected shape [2, 8]": lambda: run.project(x, weight, residual=x),
        "bias: expected shape [8]": lambda: run.project(x, weight, weight[0]),
        "targets: expected int64": lambda: run.score_words(x, weight, None, torch.zeros(2, dtype=torch.int32, device=DEVICE)),
    }.items():
        with pytest.raises(KernelError) as caught:
            call()
        assert str(caught.value).startswith(argument), caught.value
