"""The tokenizer a source comes with: a vocabulary in its configuration or in a text file, or a tokenizer.json beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.checkpoint.side_files import SideFiles
from engine.checkpoint.tokenizer import Tokenizer, characters, words
from engine.errors import ConversionError, Problem
from engine.spec.strict_json import read_bytes

TOKENIZER = "tokenizer.json"
VOCABULARIES = ("chars", "vocab", "words")  # entries of a configuration
LINE_ENDS = ("</s>", "<eos>")  # what aiha-lab, and FAIR and Transformer-XL, write where a line ends


def vocabulary_tokenizer(vocab: Any, size: int) -> str:
    """The text of a tokenizer.json for the option vocab=: a text file of `size` tokens, one per line in the order of their ids."""
    return _words(_tokens(_lines(vocab), "option vocab", size, str(vocab)))


def read_tokenizer(files: SideFiles, config: Mapping[str, Any], size: int, source: str) -> str | None:
    """The text of a tokenizer.json with exactly `size` tokens, or None.

    `chars`, `vocab` or `words` of the configuration come first, then a tokenizer.json beside the source.
    """
    if config.get("chars") is not None:
        return characters(_tokens(config["chars"], "config chars", size, source))
    for key in VOCABULARIES[1:]:
        if isinstance(config.get(key), list):
            return _words(_tokens(config[key], f"config {key}", size, source))
    return _existing(files, size) if files.has(TOKENIZER) else None


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


def _existing(files: SideFiles, size: int) -> str:
    path = files.folder / TOKENIZER
    text = files.bytes(path, ConversionError).decode(errors="replace")
    found = Tokenizer.from_json(text, source=str(path)).vocab_size
    if found != size:
        raise ConversionError(Problem(TOKENIZER, f"{size} tokens, the size of the vocabulary", str(found)), source=str(path))
    return text
