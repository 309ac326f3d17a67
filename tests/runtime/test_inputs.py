"""Ids and options a caller may give, and the one sentence each wrong one gets."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from engine.errors import InputError
from engine.runtime.inputs import is_batch, prompt_row, rectangle, token_rows
from engine.runtime.options import GenerationOptions, generation_options

VOCAB = 12


@pytest.mark.parametrize(
    "ids",
    [[[1, 2], [3, 4]], ((1, 2), (3, 4)), np.array([[1, 2], [3, 4]], np.uint8), [np.array([1, 2]), [3, np.int32(4)]]],
    ids=repr,
)
def test_lists_and_arrays_are_the_same_ids(ids: Any) -> None:
    assert rectangle(ids, VOCAB).tolist() == [[1, 2], [3, 4]] and rectangle(ids, VOCAB).dtype == np.int64


def test_torch_integers_are_ids() -> None:
    torch = pytest.importorskip("torch")
    assert rectangle(torch.tensor([[1, 2]], dtype=torch.int32), VOCAB).tolist() == [[1, 2]]
    assert prompt_row(torch.tensor([3, 4]), "prompt", VOCAB).tolist() == [3, 4]
    assert [row.tolist() for row in token_rows([torch.tensor([3, 4]), [5]], VOCAB)] == [[3, 4], [5]]
    for wrong in (torch.tensor([[1.0]]), torch.tensor([[1.0]], dtype=torch.bfloat16), torch.tensor([[True]]), torch.tensor([1])):
        with pytest.raises(InputError):
            rectangle(wrong, VOCAB)


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([], "at least one sequence"),
        ([[]], "at least one token"),
        (np.zeros((2, 0), np.int64), "at least one token"),
        (5, "batch"),
        ("text", "batch"),
        (None, "batch"),
        ({1: 2}, "batch"),
        ([1, 2], "list of token ids"),
        ([[[1]]], "integers"),
        (np.zeros(3, np.int64), r"found int64 \[3\]"),
        (np.zeros((1, 2, 3), np.int64), "batch"),
        ([[1.0, 2.0]], "integers"),
        ([[1, 2.5]], "integers"),
        (np.ones((1, 2), np.float32), "float32"),
        ([[1, True]], "bool"),
        (np.ones((1, 2), bool), "bool"),
        ([["a"]], "integers"),
        ([[1, None]], "integers"),
        ([[1, [2]]], "integers"),
        ([[2**70]], "integers"),
        ([[1, 12]], r"ids\[0\]\[1\]: expected a token id from 0 to 11 \(a vocabulary of 12\), found 12"),
        ([[1], [-1]], r"ids\[1\]\[0\].*found -1"),
        (np.array([[2**63 + 1]], np.uint64), "vocabulary of 12"),
    ],
    ids=repr,
)
def test_wrong_ids_are_named(ids: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        token_rows(ids, VOCAB)


def test_every_wrong_sequence_is_reported_together_and_many_are_counted() -> None:
    with pytest.raises(InputError) as caught:
        token_rows([[99], [1], [-3], []], VOCAB)
    assert len(caught.value.problems) == 3
    with pytest.raises(InputError, match="and 4 more"):
        token_rows([[50]] * 9, VOCAB)


def test_ragged_lists_are_rows_but_no_rectangle() -> None:
    assert [len(row) for row in token_rows([[1], [1, 2, 3]], VOCAB)] == [1, 3]
    with pytest.raises(InputError, match=r"lengths from 1 to 3[\s\S]*score"):
        rectangle([[1], [1, 2, 3]], VOCAB)


@pytest.mark.parametrize("prompt", ["text", [1, 2], np.array([1, 2]), [], ()], ids=repr)
def test_one_prompt(prompt: Any) -> None:
    assert not is_batch(prompt)


@pytest.mark.parametrize("prompt", [["a"], ["a", [1]], [[1], [2, 3]], np.array([[1]]), [np.array([1])], ([1],)], ids=repr)
def test_a_batch_of_prompts(prompt: Any) -> None:
    assert is_batch(prompt)


def options(has_tokenizer: bool = True, **given: Any) -> GenerationOptions:
    return generation_options(given, vocab=VOCAB, has_tokenizer=has_tokenizer)


def test_good_options() -> None:
    assert options() == GenerationOptions()
    found = options(
        stop=["a", 3, np.int64(4)], temperature=np.float32(0.5), top_k=np.int64(3), top_p=0.5, seed=0, logprobs=2, max_new_tokens=1
    )
    assert found.stop_texts == ("a",) and found.stop_ids == {3, 4}
    assert (found.temperature, found.top_k, found.top_p, found.seed, found.logprobs) == (0.5, 3, 0.5, 0, 2)
    assert options(stop="ab").stop_texts == ("ab",) and options(stop=0).stop_ids == {0}
    assert options(top_k=VOCAB, top_p=1.0) == GenerationOptions()  # neither cuts anything


@pytest.mark.parametrize(
    "given",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": 1.5},
        {"max_new_tokens": True},
        {"max_new_tokens": None},
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"temperature": "1"},
        {"temperature": None},
        {"temperature": 10**400},
        {"top_k": 0},
        {"top_k": 2.0},
        {"top_p": 0},
        {"top_p": 1.01},
        {"top_p": math.nan},
        {"seed": -1},
        {"seed": 2**64},
        {"seed": "a"},
        {"logprobs": -1},
        {"logprobs": None},
        {"stop": ""},
        {"stop": [12]},
        {"stop": -1},
        {"stop": 1.5},
        {"stop": [None]},
        {"tempreature": 1},
    ],
    ids=repr,
)
def test_each_wrong_option_is_named(given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(given))):
        options(**given)


def test_wrong_options_are_reported_together() -> None:
    with pytest.raises(InputError) as caught:
        options(temperature=-1, top_k=0, unknown=3, stop=[99, "x"], has_tokenizer=False)
    assert len(caught.value.problems) == 5
