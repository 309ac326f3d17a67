"""Tokenizers made from vocabularies round trip; what they cannot encode or read is named."""

from __future__ import annotations

import json

import pytest

from engine.checkpoint.tokenizer import Tokenizer, characters, words
from engine.errors import CheckpointError, ConversionError, InputError

LETTERS = ["\n", " ", "!", "T", "o", "b", "e", "é", "\u0308", "\t", "🙂", "<unk"]


def test_characters_round_trip_exactly() -> None:
    tokenizer = Tokenizer.from_json(characters(LETTERS))
    for text in ("To be\n", "\n\n  To\t!", " ", "é e\u0308 🙂", ""):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("To be\n") == [3, 4, 1, 5, 6, 0]
    assert tokenizer.vocab_size == len(LETTERS)


def test_padding_and_truncation_of_the_file_are_left_out() -> None:
    asks = json.loads(characters(LETTERS))
    asks["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    asks["padding"] = {
        "strategy": {"Fixed": 5},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "\n",
    }
    tokenizer = Tokenizer.from_json(json.dumps(asks))
    assert tokenizer.encode("To be\n") == [3, 4, 1, 5, 6, 0] and tokenizer.encode("T") == [3]


def test_an_unknown_character_is_named_with_its_position() -> None:
    tokenizer = Tokenizer.from_json(characters(LETTERS))
    with pytest.raises(InputError, match=r"'x' at position 3"):
        tokenizer.encode("To x")
    with pytest.raises(InputError, match=r"'漢' at position 2"):
        tokenizer.encode("🙂\n漢🙂")


def test_an_unknown_character_is_unk_where_the_vocabulary_has_one() -> None:
    tokenizer = Tokenizer.from_json(characters(["a", "<unk>"]))
    assert tokenizer.encode("axa") == [0, 1, 0]


def test_words_are_split_at_white_space_and_lines_end_with_eos() -> None:
    tokenizer = Tokenizer.from_json(words(["<eos>", "the", "cat", "@-@", "<unk>"]))
    ids = tokenizer.encode("the  cat\n @-@ dog \n\nthe")
    assert ids == [1, 2, 0, 3, 4, 0, 0, 1]
    text = tokenizer.decode(ids)
    assert text == "the cat\n @-@ <unk>\n\n the"
    assert tokenizer.encode(text) == ids


def test_words_without_unk_or_eos() -> None:
    tokenizer = Tokenizer.from_json(words(["the", "cat"]))
    assert tokenizer.encode("the\ncat") == [0, 1]
    with pytest.raises(InputError, match=r"'dog' at position 4"):
        tokenizer.encode("the dog")


def test_words_in_lower_case() -> None:
    assert Tokenizer.from_json(words(["the", "<eos>"], lower=True)).encode("The THE\n") == [0, 0, 1]
    odd = Tokenizer.from_json(words(["a", "(e.s)$"], end_of_line="(e.s)$"))
    assert odd.encode("a\na") == [0, 1, 0] and odd.decode([0, 1, 0]) == "a\n a"


def test_a_vocabulary_with_an_entry_twice_is_refused() -> None:
    for make in (characters, words):
        with pytest.raises(ConversionError, match="'b' twice"):
            make(["a", "b", "b"])


def test_json_round_trips() -> None:
    text = characters(LETTERS)
    assert Tokenizer.from_json(Tokenizer.from_json(text).to_json()).encode("To") == [3, 4]


@pytest.mark.parametrize("text", ["", "{}", "[]", "{", "null", '{"model": {"type": "WordLevel"}}', characters(["a"])[:-20], "\x00"])
def test_a_broken_tokenizer_is_one_clear_error(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json[\s\S]*in model"):
        Tokenizer.from_json(text, source="model")


def test_wrong_arguments_are_input_errors() -> None:
    tokenizer = Tokenizer.from_json(characters(LETTERS))
    for wrong in (None, 3, b"To", ["To"]):
        with pytest.raises(InputError):
            tokenizer.encode(wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="surrogate"):
        tokenizer.encode("To \ud800")
    for ids in ([-1], [2**40], ["a"], [1.5]):
        with pytest.raises(InputError):
            tokenizer.decode(ids)  # type: ignore[arg-type]
    assert tokenizer.decode([4, 999, 4]) == "oo"


def test_the_file_is_plain_json_with_every_entry() -> None:
    assert json.loads(characters(LETTERS))["model"]["vocab"] == {entry: i for i, entry in enumerate(LETTERS)}
