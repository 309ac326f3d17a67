"""What the smoke tests of both GPU backends compute: each kernel alone on random inputs, against float64, from one row to many.

Sizes are those of arXiv 2110.03252 on a GPU, and small in the emulator and the interpreter. Outputs are poisoned by the folders' conftest.
Attention of many rows is compared in some of them, each by the oracle's loops over one row.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from engine_kernels import reference
from engine_kernels.gpu_ops import GpuKernels, Pair, Sequences
from engine_kernels.testing import assert_close
from tests.kernels.cuda.test_projections import log_sum, norm_of, normal, normalised, picked, rounded, whole
from tests.support.attention_cases import DEVICE, DTYPES, Case, Inputs, check, double, draw, ring

GPU = DEVICE == "cuda"
HIDDEN, HEADS, HEAD_DIM, PERSISTENT, WINDOW, WORDS = (512, 8, 64, 2048, 193, 5003) if GPU else (72, 3, 24, 33, 17, 131)
ROWS = (1, 8, 64, 65, 2000) if GPU else (1, 8, 65)
STREAMS = (1, 8, 64, 65, 200) if GPU else (1, 8, 17)  # sequences of one row each
CAPACITY = 3  # of a ring that is only written


def project(kernels: GpuKernels, rows: int, dtype: str) -> None:
    """A feed-forward's first half, whose result is 16-bit where the weight is, and a product with a residual behind it."""
    rng = np.random.default_rng(rows)
    x, norm = normal(rng, rows, HIDDEN, spread=2.0) + 3, norm_of(rng, HIDDEN)
    up, bias = normal(rng, 2 * HIDDEN + 1, HIDDEN, dtype=dtype, spread=HIDDEN**-0.5), normal(rng, 2 * HIDDEN + 1, dtype=dtype)
    found = kernels.project(x, up, bias, norm=norm, activation="relu", dtype=up.dtype)
    a = normalised(double(x), norm)
    exact, plain = (np.maximum(y @ double(up).T + double(bias), 0) for y in (a, rounded(a, dtype)))
    assert_close(double(found), rounded(plain, dtype), exact, dtype, f"project with a norm, {rows} rows")
    down = normal(rng, HIDDEN, HIDDEN, dtype=dtype, spread=HIDDEN**-0.5)
    found = kernels.project(x, down, residual=x)
    exact, plain = (double(x) + y @ double(down).T for y in (double(x), rounded(double(x), dtype)))
    assert_close(double(found), rounded(plain, dtype), exact, dtype, f"project with a residual, {rows} rows")


def project_heads(kernels: GpuKernels, rows: int, dtype: str) -> None:
    """Queries, and keys and values into rings that wrap, in slots out of order; nothing else in the rings is written."""
    rng = np.random.default_rng(rows)
    x, norm = normal(rng, rows, HIDDEN), norm_of(rng, HIDDEN)
    weight = normal(rng, 3, HEADS, HEAD_DIM, HIDDEN, dtype=dtype, spread=HIDDEN**-0.5)
    rings, (slots, positions) = poisoned_rings(rows + 1, dtype), places(rng, rows)
    query = kernels.project_heads(x, weight, None, norm, rings, whole(slots), whole(positions))
    a = normalised(double(x), norm)
    exact, plain = (np.einsum("rk,whdk->wrhd", y, double(weight), optimize=True) for y in (a, rounded(a, dtype)))
    found = [double(query)] + [double(each)[slots, :, positions % CAPACITY] for each in rings]
    assert_close(np.stack(found), rounded(plain, dtype), exact, dtype, f"project_heads, {rows} rows")
    assert all(int(torch.isfinite(each).sum()) == rows * HEADS * HEAD_DIM for each in rings)


def write_rings(kernels: GpuKernels, rows: int, dtype: str) -> None:
    """Bits are moved, those of the source rows and no others."""
    rng = np.random.default_rng(rows)
    new = normal(rng, rows, HEADS, 1, HEAD_DIM, dtype=dtype), normal(rng, rows, HEADS, 1, HEAD_DIM, dtype=dtype)
    rings, (slots, positions) = poisoned_rings(rows + 1, dtype), places(rng, rows)
    source = np.sort(rng.permutation(rows)[: (rows + 1) // 2])
    kernels.write_rings(new, rings, whole(source), whole(slots), whole(positions))
    for written, fresh in zip(rings, new, strict=True):
        np.testing.assert_array_equal(double(written)[slots[source], :, positions[source] % CAPACITY], double(fresh)[source, :, 0])
        assert int(torch.isfinite(written).sum()) == len(source) * HEADS * HEAD_DIM


def normalise(kernels: GpuKernels, rows: int) -> None:
    rng = np.random.default_rng(rows)
    x, norm = normal(rng, rows, HIDDEN) + 100, norm_of(rng, HIDDEN)
    plain = torch.nn.functional.layer_norm(x, (HIDDEN,), norm.gain, norm.shift, norm.eps)
    assert_close(double(kernels.normalise(x, norm)), double(plain), normalised(double(x), norm), "float32", f"normalise, {rows} rows")


def score_words(kernels: GpuKernels, rows: int, dtype: str) -> None:
    rng = np.random.default_rng(rows)
    x, weight = normal(rng, rows, HIDDEN), normal(rng, WORDS, HIDDEN, dtype=dtype, spread=2 * HIDDEN**-0.5)
    bias, targets = normal(rng, WORDS, dtype=dtype), rng.integers(-1, WORDS, rows)
    everything, logit = kernels.score_words(x, weight, bias, whole(targets))
    exact, plain = (y @ double(weight).T + double(bias) for y in (double(x), rounded(double(x), dtype)))
    assert_close(double(everything), rounded(log_sum(plain), dtype), log_sum(exact), dtype, f"score_words, all, {rows} rows")
    assert_close(double(logit), rounded(picked(plain, targets), dtype), picked(exact, targets), dtype, f"score_words, targets, {rows} rows")


def attend_ring(kernels: GpuKernels, streams: int, dtype: str) -> None:
    """Sequences of one row each against their rings, in mid-stream and before the window is full, with poison in the slots not seen."""
    case = Case(streams, HEADS, 1, HEAD_DIM, PERSISTENT, WINDOW, attended_zeros=streams % 2 == 1, dtype=dtype, capacity=1)
    inputs, order = draw(case), torch.arange(streams, device=DEVICE)
    keys, values = (ring(case, each[:, :, 1:], inputs.positions) for each in (inputs.keys, inputs.values))
    sequences = Sequences(order, torch.ones_like(order), order, inputs.positions, inputs.positions)
    none = np.zeros(0, np.int64)
    query = inputs.query.transpose(1, 2).flatten(0, 1).contiguous()
    out = kernels.attend(query, (keys, values), None, sequences, None, none, inputs.tables, case.visibility)
    assert bool(torch.isfinite(out).all())
    for stream in some(streams):
        one = slice(stream, stream + 1)
        part = Inputs(inputs.query[one], inputs.keys[one], inputs.values[one], inputs.positions[one], inputs.tables)
        check(replace(case, batch=1), out[one][:, :, None], part, f"attend_ring, stream {stream} of {streams}")


def attend_rows(kernels: GpuKernels, rows: int, dtype: str) -> None:
    """A sequence of many rows with a past, and one of a single row beside it that brings its key along."""
    case = Case(1, HEADS, rows, HEAD_DIM, PERSISTENT, WINDOW, dtype=dtype)
    drawn = [draw(replace(case, rows=length), seed) for seed, length in enumerate((rows, 1))]
    drawn[1] = replace(drawn[1], tables=drawn[0].tables)
    lengths, reach = np.array([rows, 1]), case.visibility.reach

    def packed(name: str, first: int) -> torch.Tensor:  # [rows + 1, H, D]
        return torch.cat([getattr(each, name)[0, :, first:].transpose(0, 1) for each in drawn]).contiguous()

    rings = tuple(torch.cat([getattr(each, name)[:, :, :reach] for each in drawn]).contiguous() for name in ("keys", "values"))
    positions = torch.cat([each.positions for each in drawn])
    sequences = Sequences(whole(np.array([0, rows])), whole(lengths), whole(np.array([0, 1])), whole(np.zeros(2)), positions)
    new = packed("keys", reach)[:, :, None], packed("values", reach)[:, :, None]
    out = kernels.attend(packed("query", 0), (rings[0], rings[1]), new, None, sequences, lengths, drawn[0].tables, case.visibility)
    assert bool(torch.isfinite(out).all())
    for row in some(rows):
        check(replace(case, rows=1), out[row][None, :, None], alone(case, drawn[0], row), f"attend_rows, row {row} of {rows}")
    check(replace(case, rows=1), out[rows][None, :, None], drawn[1], f"attend_rows, the single row beside {rows}")


def attend_bidirectional(kernels: GpuKernels, rows: int, dtype: str) -> None:
    """A sequence of `rows` rows and a shorter one packed behind it."""
    rng, lengths = np.random.default_rng(rows), (rows, (rows + 2) // 3)
    given = [normal(rng, sum(lengths), HEADS, HEAD_DIM, dtype=dtype) for _ in "qkv"]
    firsts = whole(np.array([0, rows]))
    sequences = Sequences(firsts, whole(np.array(lengths)), firsts, firsts, firsts)
    found = double(kernels.attend_bidirectional(given[0], (given[1][:, :, None], given[2][:, :, None]), sequences, np.array(lengths)))
    for first, length in ((0, rows), (rows, lengths[1])):
        one = [tensor[first : first + length].transpose(0, 1)[None] for tensor in given]  # [1, H, T, D]
        plain, exact = double(reference.attend_bidirectional(*one)), softmax_of(*map(double, one))
        assert_close(
            found[first : first + length].swapaxes(0, 1)[None], plain, exact, dtype, f"attend_bidirectional, {length} of {lengths}"
        )


def softmax_of(query: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """[1, H, T, D] in float64, a head at a time."""
    out = np.empty(query.shape)
    for h in range(query.shape[1]):
        scores = query[0, h] @ keys[0, h].T / np.sqrt(query.shape[3])
        shares = np.exp(scores - scores.max(1, keepdims=True))
        out[0, h] = shares / shares.sum(1, keepdims=True) @ values[0, h]
    return out


def alone(case: Case, inputs: Inputs, row: int) -> Inputs:
    """One row with the keys it can reach and its own."""
    keys = slice(row, row + case.visibility.reach + 1)
    query = inputs.query[:, :, row : row + 1]
    return Inputs(query, inputs.keys[:, :, keys], inputs.values[:, :, keys], inputs.positions + row, inputs.tables)


def some(rows: int) -> list[int]:
    """The first and the last rows, those around 16 and 64, and one in the middle."""
    return sorted({row for row in (0, 1, 15, 16, 63, 64, rows // 2, rows - 2, rows - 1) if 0 <= row < rows})


def places(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Slots [rows] out of order among one more, and far positions."""
    return rng.permutation(rows + 1)[:rows], rng.integers(0, 2**40, rows)


def poisoned_rings(slots: int, dtype: str) -> Pair:
    shape = (slots, HEADS, CAPACITY, HEAD_DIM)
    keys, values = (torch.full(shape, torch.nan, dtype=DTYPES[dtype], device=DEVICE) for _ in "kv")
    return keys, values
