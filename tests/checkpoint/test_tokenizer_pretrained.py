"""Tokenizers made from the vocabulary files of Hugging Face directories: ids by hand, and damaged files."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

import engine
from engine.checkpoint.side_files import SideFiles
from engine.checkpoint.tokenizer import Tokenizer
from engine.errors import EngineError
from engine.formats.hugging_face.converter import CONVERTER
from tests.support.hugging_face_sources import encoder, gpt2

WORD_PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "Cat", "é", "e", "世", ",", "##é"]
PIECES = ["<unk>", "<s>", "</s>", "▁", "a", "b", "▁a", "▁ab", "ba"]  # <unk> <s> </s> are SentencePiece's own first three
LETTERS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "a", "b", "Ġ", "ab", "Ġab"]


def read(kind: str, directory: Path, notes: list[str]) -> str | None:
    return CONVERTER.tokenizer(SideFiles(directory), {"model_type": kind}, "model.safetensors", 41, notes)


def tokenizer(kind: str, directory: Path) -> Tokenizer:
    text = read(kind, directory, [])
    assert text is not None
    return Tokenizer.from_json(text)


def sentencepiece(pieces: list[str], model_type: int = 1) -> bytes:
    """A model as protocol buffers: pieces with scores by length, a trainer_spec, an empty normaliser."""
    message = b""
    for piece in pieces:
        text = piece.encode()
        held = b"\x0a" + bytes([len(text)]) + text + b"\x15" + struct.pack("<f", -10.0 + 3 * len(piece))
        message += b"\x0a" + bytes([len(held)]) + held
    return message + b"\x12\x02\x18" + bytes([model_type]) + b"\x1a\x00"


@pytest.mark.parametrize(
    ("settings", "text", "ids"),
    [
        ({}, "The CATS, é世", [5, 6, 7, 12, 10, 11]),  # lower case takes accents off
        ({"do_lower_case": False}, "the Cats é", [5, 8, 7, 9]),
        ({"do_lower_case": True, "strip_accents": False}, "É catsé", [9, 6, 7, 13]),
        ({}, "dog", [1]),
        ({}, "the [MASK]", [5, 4]),
    ],
)
def test_word_pieces(settings: dict[str, Any], text: str, ids: list[int], tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(WORD_PIECES) + "\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    found = tokenizer("bert", tmp_path)
    assert found.encode(text) == ids
    assert found.encode(text, special_tokens=True) == [2, *ids, 3]
    assert found.vocab_size == len(WORD_PIECES)


def test_sentence_pieces_stand_one_behind_their_own_numbers(tmp_path: Path) -> None:
    (tmp_path / "sentencepiece.bpe.model").write_bytes(sentencepiece(PIECES))
    found = tokenizer("xlm-roberta", tmp_path)
    assert found.encode("ab a") == [8, 7] and found.encode("  ab   a ") == [8, 7]
    assert found.encode("ab", special_tokens=True) == [0, 8, 2]
    assert found.encode("ab <mask> z") == [8, 10, 4, 3]
    assert found.decode([8, 7]) == "ab a" and found.vocab_size == len(PIECES) + 2


def test_camembert_has_five_tokens_before_the_pieces(tmp_path: Path) -> None:
    """Piece 0, <unk>, is not used; <s> and </s> are SentencePiece's own, numbers 5 and 6."""
    (tmp_path / "sentencepiece.bpe.model").write_bytes(sentencepiece(PIECES))
    found = tokenizer("camembert", tmp_path)
    assert found.encode("ab a", special_tokens=True) == [5, 11, 10, 6] and found.decode([11, 10]) == "ab a"
    assert found.encode("ab <mask> z") == [11, 13, 7, 3] and found.vocab_size == len(PIECES) + 5
    assert found.encode("<pad>") == [1]


def test_tokens_a_user_added(tmp_path: Path) -> None:
    """As transformers 4 leaves them beside a vocabulary; those it says to be special match before letters are put in lower case."""
    (tmp_path / "vocab.txt").write_text("\n".join(WORD_PIECES) + "\n")
    (tmp_path / "added_tokens.json").write_text(json.dumps({"[E1]": 14, "new": 15}))
    assert tokenizer("bert", tmp_path).encode("the [E1] new cats") == [5, 14, 15, 6, 7]
    told = {"2": {"content": "[CLS]", "special": True}, "14": {"content": "[E1]", "special": True, "normalized": False}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": told}))
    assert tokenizer("bert", tmp_path).encode("the [E1] cat") == [5, 14, 6]
    for wrong in ({"[E1]": 16}, {"[E1]": "x"}, {"the": 14}):
        (tmp_path / "added_tokens.json").write_text(json.dumps(wrong))
        (tmp_path / "tokenizer_config.json").unlink(missing_ok=True)
        with pytest.raises(EngineError, match="expected a new token for 14, the next number"):
            tokenizer("bert", tmp_path)


@pytest.mark.parametrize("kind", ["gpt2", "roberta"])
def test_byte_pairs(kind: str, tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(LETTERS)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\nĠ ab\n")
    found = tokenizer(kind, tmp_path)
    assert found.encode("ab ab ba") == [8, 9, 7, 6, 5]
    assert found.encode("ab", special_tokens=True) == ([0, 8, 2] if kind == "roberta" else [8])
    assert found.decode([8, 9]) == "ab ab"
    if kind == "roberta":
        assert found.encode("ab <mask>") == [8, 4]


def test_a_directory_brings_its_tokenizer_along(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    path = encoder().write(tmp_path / "source")
    (path / "vocab.txt").write_text("\n".join(WORD_PIECES) + "\n")  # fewer than the model's 41 words is fine
    engine.convert(path, tmp_path / "out")
    with engine.load(tmp_path / "out") as model:
        assert model.tokenizer is not None
        ids = model.tokenizer.encode("the cat", special_tokens=True)
        assert ids == [2, 5, 6, 3] and model.encode([ids]).shape == (1, 4, 12)
    path = gpt2().write(tmp_path / "gpt2")
    (path / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(LETTERS)}))
    (path / "merges.txt").write_text("a b\n")
    with engine.load(path) as model:
        assert isinstance(model.generate("ab a", max_new_tokens=2).text, str)


@pytest.mark.parametrize(
    ("kind", "files", "message"),
    [
        ("bert", {"vocab.txt": b"\xff\xfe"}, "damaged byte"),
        ("bert", {"vocab.txt": b"[UNK]\n", "tokenizer_config.json": b"[]"}, "a JSON object"),
        ("bert", {"tokenizer.json": b"{}"}, "tokenizer.json"),
        ("gpt2", {"vocab.json": b"{}", "merges.txt": b"a b c\n"}, "line 1: expected two pieces"),
        ("gpt2", {"vocab.json": b'{"a": "b"}', "merges.txt": b""}, "vocabulary"),
        ("gpt2", {"vocab.json": b'{"a": 1}', "merges.txt": b"x y\n"}, "vocabulary"),
        ("xlm-roberta", {"sentencepiece.bpe.model": b"\x0a\xff\xff\xff\xff"}, "a SentencePiece model"),
        ("xlm-roberta", {"sentencepiece.bpe.model": b""}, "at least 4 pieces"),
        ("xlm-roberta", {"sentencepiece.bpe.model": b"\x08" + b"\xff" * 20}, "a number without end"),
        ("xlm-roberta", {"sentencepiece.bpe.model": sentencepiece(PIECES, 2)}, "model_type: expected 1"),
    ],
)
def test_damaged_files(kind: str, files: dict[str, bytes], message: str, tmp_path: Path) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(EngineError, match=message):
        tokenizer(kind, tmp_path)


def test_a_vocabulary_without_an_unknown_token_names_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    assert tokenizer("bert", tmp_path).encode("a") == [0]
    with pytest.raises(EngineError, match="'zz' at position 2"):
        tokenizer("bert", tmp_path).encode("a zz")


def test_files_nothing_reads_are_noted(tmp_path: Path) -> None:
    (tmp_path / "sentencepiece.bpe.model").write_bytes(sentencepiece(PIECES))
    notes: list[str] = []
    assert read("electra", tmp_path, notes) is None
    assert notes == ["sentencepiece.bpe.model not read: no tokenizer is made from them for model_type electra"]
