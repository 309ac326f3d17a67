"""The tokenizer a source comes with: a vocabulary in its configuration or in a text file, or a tokenizer.json beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.checkpoint.tokenizer import Tokenizer, characters, words
from engine.errors import ConversionError, Problem
from engine.spec.strict_json import read_bytes

TOKENIZER = "tokenizer.json"
VOCABULARIES = ("chars", "vocab", "words")  # entries of a configuration
LINE_ENDS = ("</s>", "<eos>")  # what aiha-lab, and FAIR and Transformer-XL, write where a line ends


def read_tokenizer(vocab: Any, config: Mapping[str, Any], file: Path, size: int) -> str | None:
    """The text of a tokenizer.json with exactly `size` tokens, or None.

    The option vocab= (a text file, one token per line in the order of their ids) comes first, then `chars`, `vocab` or `words` of the
    configuration, then a tokenizer.json beside the source.
    """
    if vocab is not None:
        return _words(_tokens(_lines(vocab), "option vocab", size, str(vocab)))
    if config.get("chars") is not None:
        return characters(_tokens(config["chars"], "config chars", size, file.name))
    for key in VOCABULARIES[1:]:
        if isinstance(config.get(key), list):
            return _words(_tokens(config[key], f"config {key}", size, file.name))
    beside = file.parent / TOKENIZER
    return _existing(beside, size) if beside.exists() else None


def _words(tokens: list[str]) -> str:
    return words(tokens, end_of_line=next((end for end in LINE_ENDS if end in tokens), None))


def _lines(path: Any) -> list[str]:
    if not isinstance(path, str):
        raise ConversionError(Problem("option vocab", "the path of a text file, one token per line", repr(path)[:60]))
    try:
        text = read_bytes(Path(path), ConversionError).decode()
    except UnicodeDecodeError as error:
        raise ConversionError(Problem("option vocab", "text in UTF-8", f"a damaged byte at {error.start}"), source=path) from None
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def _tokens(given: Any, where: str, size: int, source: str) -> list[str]:
    if not isinstance(given, list):
        raise ConversionError(Problem(where, f"a list of {size} tokens", type(given).__name__), source=source)
    problems = []
    if len(given) != size:
        problems.append(Problem(where, f"{size} tokens, the size of the vocabulary", str(len(given))))
    seen: set[str] = set()
    for index, token in enumerate(given):
        if not isinstance(token, str) or not token:
            problems.append(Problem(f"{where}[{index}]", "a token", repr(token)[:60]))
        elif token in seen:
            problems.append(Problem(f"{where}[{index}]", "each token once", repr(token)[:60]))
        else:
            seen.add(token)
    if problems:
        raise ConversionError(problems, source=source)
    return given


def _existing(path: Path, size: int) -> str:
    text = read_bytes(path, ConversionError).decode(errors="replace")
    found = Tokenizer.from_json(text, source=str(path)).vocab_size
    if found != size:
        raise ConversionError(Problem(TOKENIZER, f"{size} tokens, the size of the vocabulary", str(found)), source=str(path))
    return text
