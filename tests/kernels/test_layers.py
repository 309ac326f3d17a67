"""Layers and vocabularies of odd sizes, every dtype and instruction set here, against float64; `make check-full` takes all sizes."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from engine.backends.fold import fold
from engine.backends.plan import compile_stack
from engine_kernels import native
from engine_kernels.testing import difference
from tests.kernels import check_full
from tests.oracle import layer as oracle
from tests.oracle.layer import layer
from tests.oracle.model import run
from tests.support import layer_cases, vocabulary_cases
from tests.support.int8_weights import rounded
from tests.support.layer_cases import SIZES, VARIANTS, Case, covering, drawn, run_case
from tests.support.random_specs import random_checkpoint, random_length

NAMES = native.instruction_sets()
DRAWS, GROUP = 200, 50


def test_the_oracle_in_matrices_is_the_one_in_loops() -> None:
    for seed in range(24):
        checkpoint = random_checkpoint(seed)
        ids = np.random.default_rng(seed).integers(0, checkpoint.spec.vocab, min(30, random_length(checkpoint)))
        streams = run(checkpoint.spec.to_dict(), checkpoint.weights, ids).streams
        plans = zip(compile_stack(checkpoint.spec).layers, fold(checkpoint).layers, strict=True)
        for index, (plan, arrays) in enumerate(plans):
            found = layer(asdict(plan), arrays, streams[index])
            assert np.abs(found - streams[index + 1]).max() < 1e-5, f"seed {seed}, layer {index}"  # the fold is in float32


def test_the_covering_set_has_every_pair() -> None:
    cases = [asdict(case) for case in covering()]
    fields = SIZES | VARIANTS
    for a in fields:
        for b in fields:
            found = {(case[a], case[b]) for case in cases}
            missing = {(x, y) for x in fields[a] for y in fields[b] if a != b or x == y} - found
            assert not missing, f"{a}, {b}: {missing}"
    assert NAMES[0] == "generic"


@pytest.mark.parametrize("part", range(4))
def test_every_pair_of_sizes_and_variants(part: int) -> None:
    check(covering()[part::4])


@pytest.mark.parametrize("first", range(0, DRAWS, GROUP))
def test_seeded_draws(first: int) -> None:
    check(drawn(DRAWS)[first : first + GROUP])


def check(cases: list[Case]) -> None:
    for case in cases:
        outcome = run_case(case, NAMES)
        assert len(outcome.ratios) == 2 * len(NAMES)
        assert not outcome.failed, f"{case}: {outcome.failed}"


@pytest.mark.parametrize("dtype", SIZES["dtype"])
@pytest.mark.parametrize("heads", [1, 3])
def test_one_visible_key_is_given_its_value(dtype: str, heads: int) -> None:
    """All masked but one: whatever the scores, even ±1e4, the only share is 1."""
    for scores in VARIANTS["scores"]:
        case = Case(65, heads, 0, 24, 1, dtype, zeros=False, relative="none", scores=scores)
        arrays = layer_cases.arrays_of(case)
        small = run_case(case, NAMES)
        assert not small.failed and max(small.ratios.values()) < 1
        held = layer_cases.stored(arrays, dtype)
        x = np.random.default_rng(0).standard_normal((9, layer_cases.HIDDEN))
        values = layer_cases.layer(asdict(case.shape), held, x)
        other = layer_cases.layer(asdict(case.shape), held | {"attention.key": -held["attention.key"]}, x)
        np.testing.assert_array_equal(values, other)


def test_a_planted_fault_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule is tight enough: one key too few, a scale of another row, weights of another dtype."""
    case = Case(63, 3, 17, 24, 17, "float32", zeros=False)
    assert not run_case(case, NAMES).failed
    seen = layer_cases.layer
    monkeypatch.setattr(layer_cases, "layer", lambda shape, *rest: seen(_nearer(shape), *rest))
    assert all(ratio > 10 for ratio in run_case(case, NAMES).ratios.values())
    monkeypatch.undo()
    for dtype in ("bfloat16", "int8"):
        narrow = replace(case, dtype=dtype)
        assert not run_case(narrow, NAMES).failed
        monkeypatch.setattr(layer_cases, "stored", lambda arrays, _: arrays)
        if not any((name, dtype) in layer_cases.ROUNDS_ROWS for name in NAMES):
            assert all(ratio > 10 for ratio in run_case(narrow, NAMES).ratios.values())
        monkeypatch.undo()


def _nearer(shape: dict[str, Any]) -> dict[str, Any]:
    """The fields of a layer whose rows see one key fewer."""
    visibility = shape["attention"]["visibility"]
    return {**shape, "attention": {**shape["attention"], "visibility": {**visibility, "window": visibility["window"] - 1}}}


def test_rows_rounded_to_int8_keep_to_the_rule_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a unit in ROUNDS_ROWS may do: every row that enters a linear layer and every query rounded, scores of ±1e4 among them."""
    linear, head = oracle.linear, oracle.head

    def int8_rows(x: np.ndarray) -> np.ndarray:
        return rounded(x.astype(np.float32)).astype(x.dtype)

    for case in covering()[::4]:
        narrow = replace(case, dtype="int8")
        held = layer_cases.stored(layer_cases.arrays_of(narrow), "int8")
        x = np.random.default_rng([case.seed, 11]).standard_normal((case.rows, layer_cases.HIDDEN)).astype(np.float32)
        exact = layer(asdict(narrow.shape), held, x.astype(np.float64))
        allowed = layer_cases.allowed(narrow, held, x, exact, "bfloat16")
        with monkeypatch.context() as patched:
            patched.setattr(oracle, "linear", lambda arrays, name, x: linear(arrays, name, int8_rows(x)))
            patched.setattr(oracle, "head", lambda shape, arrays, h, query, *rest: head(shape, arrays, h, int8_rows(query), *rest))
            assert difference(layer(asdict(narrow.shape), held, x), exact) <= allowed, narrow


def test_vocabularies() -> None:
    for case in vocabulary_cases.drawn(DRAWS):
        ratios = vocabulary_cases.run_vocabulary(case, NAMES)
        assert len(ratios) == 2 * len(NAMES)
        assert all(ratio <= 1 for ratio in ratios.values()), f"{case}: {ratios}"


def test_shards_of_check_full_are_all_cases_once() -> None:
    parts = [case for i in (1, 2, 3) for case in check_full.chosen(f"{i}/3")]
    assert sorted(parts) == sorted(check_full.chosen("1/1"))
    assert len(check_full.chosen("1/1")) == len(layer_cases.full()) + len(vocabulary_cases.full()) > 5000
    for shard in ("0/3", "4/3", "x/3", "3", "1/0"):
        with pytest.raises(SystemExit, match="I/N"):
            check_full.chosen(shard)


def test_figures_of_check_full_keep_what_is_wrong() -> None:
    figures = check_full.Figures(3)
    figures.add(("a", "int8", {"avx2, whole": 0.5}))
    figures.add(("b", "int8", {"avx2, whole": float("nan"), "avx2, single rows": 1.5}))
    figures.add(("c", "int8", {"avx2, whole": 0.1}))
    assert np.isnan(figures.worst["int8, avx2, whole"]) and figures.worst["int8, avx2, single rows"] == 1.5
    assert len(figures.failures) == 2 and all(failure.endswith(": b") for failure in figures.failures)
    assert "3 of 3 cases, 2 failures" in figures.line()
