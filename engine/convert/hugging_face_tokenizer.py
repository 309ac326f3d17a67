"""The tokenizer of a Hugging Face directory: tokenizer.json as it stands, or made from the vocabulary files beside the tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.convert.source_tokenizer import TOKENIZER
from engine.errors import ConversionError, Problem
from engine.strict_json import parse_json, read_bytes
from engine.tokenizer import Tokenizer
from engine.tokenizer_pretrained import byte_pairs, unigrams, word_pieces

WORD_PIECES, BYTE_PAIRS, SENTENCE_PIECES = ("bert", "distilbert"), ("gpt2", "roberta"), ("xlm-roberta",)  # model_type


def read_hugging_face_tokenizer(model_type: str, file: Path, notes: list[str]) -> str | None:
    """The text of a tokenizer.json, or None; ids it has beyond the model's vocabulary are refused when they are used.

    Raises ConversionError or CheckpointError for files that are not what their names say.
    """
    folder = file.parent
    if (folder / TOKENIZER).exists():
        text = _text(folder / TOKENIZER)
        Tokenizer.from_json(text, source=str(folder / TOKENIZER))
        return text
    settings = _json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    try:
        if model_type in WORD_PIECES and (folder / "vocab.txt").exists():
            tokens = [line.removesuffix("\r") for line in _text(folder / "vocab.txt").removesuffix("\n").split("\n")]
            return word_pieces(
                tokens,
                lower=settings.get("do_lower_case", True) is not False,
                chinese=settings.get("tokenize_chinese_chars", True) is not False,
                strip_accents=settings.get("strip_accents") if isinstance(settings.get("strip_accents"), bool) else None,
            )
        if model_type in BYTE_PAIRS and (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
            prefix_space = settings.get("add_prefix_space") is True
            numbers, merges = _json(folder / "vocab.json"), _merges(folder / "merges.txt")
            return byte_pairs(numbers, merges, roberta=model_type == "roberta", prefix_space=prefix_space)
        if model_type in SENTENCE_PIECES and (folder / "sentencepiece.bpe.model").exists():
            path = folder / "sentencepiece.bpe.model"
            return unigrams(read_bytes(path, ConversionError), source=str(path))
    except (ConversionError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises bare Exception, and its panics are no Exception
        raise ConversionError(Problem("vocabulary", "files the tokenizers library takes", str(error)[:200]), source=str(folder)) from None
    known = ("vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model")
    if unread := [name for name in known if (folder / name).exists()]:
        notes.append(f"{', '.join(unread)} not read: no tokenizer is made from them for model_type {model_type}")
    return None


def _text(path: Path) -> str:
    data = read_bytes(path, ConversionError)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ConversionError(Problem(path.name, "text in UTF-8", f"a damaged byte at {error.start}"), source=str(path)) from None


def _json(path: Path) -> dict[str, Any]:
    value = parse_json(read_bytes(path, ConversionError), str(path), ConversionError)
    if not isinstance(value, dict):
        raise ConversionError(Problem(path.name, "a JSON object", type(value).__name__), source=str(path))
    return value


def _merges(path: Path) -> list[tuple[str, str]]:
    """Pairs by line; a first line may name the version."""
    merges = []
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        pair = line.removesuffix("\r").split(" ")
        if len(pair) != 2:
            raise ConversionError(Problem(f"line {number}", "two pieces with a space between", repr(line)[:60]), source=str(path))
        merges.append((pair[0], pair[1]))
    return merges
