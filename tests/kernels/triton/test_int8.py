"""int8 weights on the `triton` backend: rounded by the one rule, multiplied in kernels, held to the oracle on dequantised numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton", reason="Triton is not installed: pip install 'headcount[gpu]'", exc_type=ImportError)

import torch

import engine
from engine_kernels import reference
from engine_kernels.gpu_ops import Int8, Norm
from engine_kernels.int8 import quantise
from engine_kernels.testing import EPS, assert_close, difference, tolerance
from engine_kernels.triton_ops.ops import TritonOps
from engine_kernels.triton_ops.projections import project, project_heads
from engine_kernels.triton_ops.vocabulary import score_words
from tests.backends.test_oracle_properties import Case as ModelCase
from tests.backends.test_oracle_properties import _check_targets, moved
from tests.kernels.triton.test_attention import launcher
from tests.kernels.triton.test_runner import FIXTURES, triton_runner
from tests.oracle.model import run
from tests.support import engine_side
from tests.support.attention_cases import DEVICE, DTYPES, Case, Inputs, double, draw, exact, one_row, ring
from tests.support.int8_weights import rounded, rounded_weights
from tests.support.random_specs import random_checkpoint, random_length


def test_rounds_by_the_definition() -> None:
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((3, 5, 17)) * 10.0 ** rng.integers(-6, 6, (3, 5, 1))).astype(np.float32)
    rows[0, 0], rows[1, 1, :4] = 0, (127, 2.5, 3.5, -0.5)
    rows[1, 1, 4:] = 0
    values, scale = quantise(rows)
    np.testing.assert_array_equal(values * scale[..., None], rounded(rows))
    assert values[1, 1, :4].tolist() == [127, 2, 4, 0] and scale[1, 1] == 1 and scale[0, 0] == 0
    assert quantise(np.zeros((2, 0), np.float32))[1].tolist() == [0, 0]


def int8(matrix: np.ndarray, dtype: torch.dtype, *, by_column: bool = False) -> Int8:
    """[.., rows, depth] float32, or with scales by column."""
    values, scale = quantise(np.swapaxes(matrix, -1, -2) if by_column else matrix)
    values = np.ascontiguousarray(np.swapaxes(values, -1, -2)) if by_column else values
    return Int8(torch.from_numpy(values).to(DEVICE), torch.from_numpy(scale).to(DEVICE), dtype)


def dequantised(matrix: Int8, *, by_column: bool = False) -> torch.Tensor:
    return matrix.values.double() * (matrix.scale[..., None, :] if by_column else matrix.scale[..., None]).double()


ATTENTION = {
    "relative": Case(heads=2),
    "a table for all heads, spans": Case(spans=True, rows=17, first_distance=1, relative="shared"),
    "no distances": Case(relative="none", rows=17, persistent=40),
    "no persistent vectors": Case(persistent=0, rows=3),
    "whole tiles of heads of 16": Case(heads=2, head_dim=16, rows=3, persistent=128),
}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", ATTENTION)
def test_attention_keeps_to_the_oracle(name: str, dtype: str) -> None:
    """Many rows at once, then the last of them against its ring; p has the dequantised tables rounded to its dtype."""
    case = replace(ATTENTION[name], dtype=dtype)
    inputs, kind = draw(case), DTYPES[dtype]
    columns = {"distances": False, "persistent_keys": False, "persistent_values": True}
    given = {key: getattr(inputs.tables, key) for key in columns}
    small = {key: int8(t.float().cpu().numpy(), kind, by_column=columns[key]) for key, t in given.items() if t is not None}
    known = {key: dequantised(table, by_column=columns[key]) for key, table in small.items()}
    inputs = replace(inputs, tables=replace(inputs.tables, **known))
    plain_tables = replace(inputs.tables, **{key: table.to(kind) for key, table in known.items()})
    tables, ops = replace(inputs.tables, **small), TritonOps(launcher())

    def check(found: torch.Tensor, case: Case, inputs: Inputs) -> None:
        plain = reference.attend(inputs.query, inputs.keys, inputs.values, inputs.positions, plain_tables, case.visibility)
        assert_close(double(found), double(plain), exact(case, inputs), dtype, f"{name}, {case}")

    check(ops.attend(inputs.query, inputs.keys, inputs.values, inputs.positions, tables, case.visibility), case, inputs)
    case, inputs = one_row(case, inputs)
    keys, values = (
        ring(case, rows[:, :, 1 - case.first_distance :][:, :, : case.visibility.reach], inputs.positions)
        for rows in (inputs.keys, inputs.values)
    )
    check(ops.attend_cached(inputs.query[:, :, 0], keys, values, inputs.positions, tables, case.visibility)[:, :, None], case, inputs)


def arrays(seed: int, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def tensor(array: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.from_numpy(array).to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("rows", "depth", "columns"), [(1, 33, 1), (3, 64, 65), (65, 129, 17)])
def test_projections_keep_to_float64(rows: int, depth: int, columns: int, dtype: str, bfloat16: None) -> None:
    """residual + relu(norm(x) · weightᵀ + bias) and x · weightᵀ of rows in the dtype, and queries, keys and values of heads."""
    kind, launch = DTYPES[dtype], launcher()
    x, w, bias, residual, gain, shift = arrays(rows, (rows, depth), (columns, depth), (columns,), (rows, columns), (depth,), (depth,))
    w[0] = 0
    weight = int8(w, kind)
    known, given, bias = dequantised(weight), tensor(x, kind), tensor(bias).to(kind).float().cpu().numpy()
    norm = Norm(tensor(gain), tensor(shift), 1e-5)

    centred = x.astype(np.float64) - x.mean(1, keepdims=True, dtype=np.float64)
    normed = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5) * gain + shift
    wanted = residual + np.maximum(normed @ known.cpu().numpy().T + bias, 0)
    found = project(launch, tensor(x), weight, tensor(bias, kind), norm=norm, activation="relu", residual=tensor(residual))
    plain_normed = reference.layer_norm(tensor(x), norm.gain, norm.shift, norm.eps)
    plain = tensor(residual) + torch.relu(reference.linear(plain_normed, known.to(kind), tensor(bias, kind)))
    assert_close(double(found), double(plain), wanted, dtype, "project with all around it")

    plain = reference.linear(given, known.to(kind), None)
    wanted = double(given) @ known.cpu().numpy().T
    assert_close(double(project(launch, given, weight)), double(plain), wanted, dtype, "project")

    heads, head_dim = 2, 5
    qkv = int8(arrays(1, (3, heads, head_dim, depth))[0], kind)
    packed = tuple(torch.empty((rows, heads, 1, head_dim), dtype=kind, device=DEVICE) for _ in "kv")
    order = torch.arange(rows, device=DEVICE)
    query = project_heads(launch, given, qkv, None, None, (packed[0], packed[1]), order, order)
    for found, which in zip((query, packed[0][:, :, 0], packed[1][:, :, 0]), dequantised(qkv), strict=True):
        flat = which.reshape(heads * head_dim, depth)
        plain = reference.linear(given, flat.to(kind), None).to(kind)
        assert_close(double(found.flatten(1)), double(plain), double(given) @ flat.cpu().numpy().T, dtype, "project_heads")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_scores_of_words_keep_to_float64(dtype: str) -> None:
    kind, rows, depth, words = DTYPES[dtype], 5, 33, 130
    x, w, bias = arrays(3, (rows, depth), (words, depth), (words,))
    weight, given = int8(w, kind), tensor(x, kind)
    shift = tensor(bias, kind)
    targets = torch.tensor([0, 129, -1, 64, 7], device=DEVICE)
    everything, logit = score_words(launcher(), given, weight, shift, targets)
    known = dequantised(weight)
    logits = double(given) @ known.cpu().numpy().T + double(shift)
    plain = reference.linear(given, known.to(kind), shift)
    wanted = np.log(np.exp(logits).sum(1))
    assert_close(double(everything), double(torch.logsumexp(plain, 1)), wanted, dtype, "log-sum-exp")
    picked = np.where(targets.cpu().numpy() < 0, 0, logits[np.arange(rows), targets.cpu().numpy()])
    chosen = torch.where(targets < 0, 0, plain[torch.arange(rows, device=DEVICE), targets])
    assert_close(double(logit), double(chosen), picked, dtype, "target's logit")


def int8_model_case(seed: int) -> ModelCase:
    """The oracle on the dequantised weights, by the rule in float32: nothing but the weights is rounded."""
    checkpoint = random_checkpoint(seed)
    ids = np.random.default_rng([seed, 2]).integers(0, checkpoint.spec.vocab, random_length(checkpoint))
    spec, weights = rounded_weights(checkpoint)
    answer = run(spec, weights, ids)
    plain = run(spec, moved(weights, seed, 4 * EPS["float32"]), ids, dtype="float32")
    allowed = tolerance(plain.log_probs, answer.log_probs, "float32")
    return ModelCase(checkpoint, ids, answer, allowed, tolerance(plain.streams, answer.streams, "float32"))


@pytest.mark.parametrize("seed", [11, 16, 30])
def test_models_keep_to_the_oracle(seed: int) -> None:
    """Whole with every layer's stream, targets, and the next token with every tail; without int8 the same model is elsewhere."""
    case, runner, streams = int8_model_case(seed), triton_runner(seed, quantization="int8"), {}
    case.check(engine_side.whole(runner, case.ids, tap=lambda layer, rows: streams.__setitem__(layer, rows.copy())), "whole")
    for layer, rows in streams.items():
        assert difference(rows, case.exact.streams[layer + 1]) <= case.allowed_streams, f"stream after layer {layer}"
    _check_targets(case, runner, np.random.default_rng(seed))
    assert difference(engine_side.from_next(runner, case.ids), case.exact.log_probs[-1]) <= case.allowed
    assert difference(engine_side.whole(triton_runner(seed), case.ids[:3]), case.exact.log_probs[:3]) > case.allowed


def test_load_says_what_is_int8() -> None:
    loaded: dict[str | None, Any] = {}
    for quantization in (None, "int8"):
        with engine.load(FIXTURES / "aiha-char" / "checkpoint.ckpt", backend="triton", dtype="float32", quantization=quantization) as model:
            loaded[quantization] = model.explain()
    explained = loaded["int8"]
    assert (explained.backend, explained.dtype, explained.quantization) == ("triton", "float32", "int8")
    assert "int8" in explained.runner["weights"] and "float32: embedding" in explained.runner["not_quantised"]
    assert loaded[None].runner["weights"] == "float32" and "not_quantised" not in loaded[None].runner
    assert explained.runner["weight_bytes"] < 0.5 * loaded[None].runner["weight_bytes"]


def test_an_encoder_runs_in_int8_as_on_the_cpu() -> None:
    source, found = FIXTURES / "hf-bert-tokcls" / "pruned", {}
    ids = np.random.default_rng(0).integers(0, 100, (1, 3))
    for backend, quantization in (("triton", None), ("triton", "int8"), ("cpu", "int8")):
        with engine.load(source, backend=backend, dtype="float32", quantization=quantization) as model:
            found[backend, quantization] = model.logits(ids)
    exact = found["triton", None]
    moved_by = np.abs(found["triton", "int8"] - exact).max()
    assert 0 < moved_by < 0.05 * np.abs(exact).max()
    assert np.abs(found["triton", "int8"] - found["cpu", "int8"]).max() < 0.05 * moved_by  # the same rounded weights
