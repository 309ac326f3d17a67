"""The tolerance rule itself: what it lets pass, what never."""

import ml_dtypes
import numpy as np
import pytest

from engine_kernels.testing import EPS, assert_close, difference, tolerance

ORACLE = np.array([1.0, -8.0, 3.0])
PLAIN = np.array([1.0, -8.0, 3.0 + 1e-3])


def test_limit_is_twice_the_plain_error_plus_four_eps_of_the_largest() -> None:
    assert tolerance(PLAIN, ORACLE, "float32") == pytest.approx(2e-3 + 4 * 2**-23 * 8)
    assert tolerance(ORACLE, ORACLE, "bfloat16") == 4 * 2**-7 * 8


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_eps_is_that_of_numpy(dtype: str) -> None:
    assert EPS[dtype] == np.finfo(dtype).eps


def test_eps_of_bfloat16() -> None:
    assert EPS["bfloat16"] == float(ml_dtypes.finfo(ml_dtypes.bfloat16).eps)


def test_a_result_at_the_limit_passes_and_one_beyond_fails_with_both_numbers() -> None:
    allowed = tolerance(PLAIN, ORACLE, "float32")
    assert_close(ORACLE + np.array([0, 0, 0.999 * allowed]), PLAIN, ORACLE, "float32", "logits")
    with pytest.raises(AssertionError, match=r"logits: .* = 2\.0\d\de-03, allowed 2\.0\d\de-03 in float32; worst at \[2\]: 3\.00"):
        assert_close(ORACLE + np.array([0, 0, 1.01 * allowed]), PLAIN, ORACLE, "float32", "logits")


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", ["result", "plain", "result and plain", "result and oracle", "all three"])
def test_nan_and_lone_infinity_never_pass(which: str, bad: float, place: int) -> None:
    wrong = ORACLE.copy()
    wrong[place] = bad
    result, plain, oracle = {
        "result": (wrong, PLAIN, ORACLE),
        "plain": (ORACLE, wrong, ORACLE),
        "result and plain": (wrong, wrong, ORACLE),
        "result and oracle": (wrong, PLAIN, wrong),
        "all three": (wrong, wrong, wrong),
    }[which]
    if which == "all three" and np.isinf(bad):
        assert_close(result, plain, oracle, "float32", "x")  # an infinity all three agree on is an answer
        return
    with pytest.raises(AssertionError):
        assert_close(result, plain, oracle, "float32", "x")


def test_an_infinite_oracle_does_not_widen_the_limit() -> None:
    oracle = np.array([-np.inf, 1.0])
    assert tolerance(oracle, oracle, "float32") == 4 * 2**-23
    with pytest.raises(AssertionError):
        assert_close(np.array([-np.inf, 1.1]), oracle, oracle, "float32", "x")
    with pytest.raises(AssertionError):
        assert_close(np.array([np.inf, 1.0]), oracle, oracle, "float32", "x")


def test_shapes_must_agree_and_empty_arrays_do() -> None:
    with pytest.raises(ValueError, match=r"shape \[3\] against an oracle of shape \[1, 3\]"):
        difference(ORACLE, ORACLE[None])
    assert difference(np.zeros((0, 3)), np.zeros((0, 3))) == 0.0
    assert_close(np.zeros(0), np.zeros(0), np.zeros(0), "float32", "x")


def test_bfloat16_arrays_are_compared_as_numbers() -> None:
    rounded = ORACLE.astype(ml_dtypes.bfloat16)
    assert difference(rounded, ORACLE) == 0.0


def test_unknown_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="dtype: expected float64, float32, float16, bfloat16, got 'int8'"):
        tolerance(PLAIN, ORACLE, "int8")
