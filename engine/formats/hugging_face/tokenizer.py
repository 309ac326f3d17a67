"""The tokenizer of a Hugging Face directory: tokenizer.json as it stands, or made from the vocabulary files beside the tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from engine.checkpoint.tokenizer import Tokenizer
from engine.checkpoint.tokenizer_pretrained import byte_pairs, unigrams, word_pieces
from engine.errors import ConversionError, Problem
from engine.formats.source_tokenizer import TOKENIZER
from engine.spec.strict_json import parse_json, read_bytes

WORD_PIECES, BYTE_PAIRS, SENTENCE_PIECES = (
    ("bert", "distilbert", "electra"),
    ("gpt2", "roberta"),
    ("xlm-roberta", "camembert"),
)  # model_type


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
        made = _made(model_type, folder, settings)
        if made is not None:
            return _with_added(made, folder, settings)
    except (ConversionError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises bare Exception, and its panics are no Exception
        raise ConversionError(Problem("vocabulary", "files the tokenizers library takes", str(error)[:200]), source=str(folder)) from None
    known = ("vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model")
    if unread := [name for name in known if (folder / name).exists()]:
        notes.append(f"{', '.join(unread)} not read: no tokenizer is made from them for model_type {model_type}")
    return None


def _made(model_type: str, folder: Path, settings: dict[str, Any]) -> str | None:
    """From the vocabulary files of the model's kind; None without them."""
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
        return unigrams(read_bytes(path, ConversionError), camembert=model_type == "camembert", source=str(path))
    return None


def _with_added(made: str, folder: Path, settings: dict[str, Any]) -> str:
    """With the tokens users added behind the vocabulary: added_tokens.json, and tokenizer_config.json where it says how they match."""
    backend = Backend.from_str(made)
    plain = _json(folder / "added_tokens.json") if (folder / "added_tokens.json").exists() else {}
    told = settings.get("added_tokens_decoder")
    rows: dict[Any, Any] = {number: {"content": token} for token, number in plain.items()}
    rows |= {int(number) if number.isdecimal() else number: row for number, row in (told.items() if isinstance(told, dict) else ())}
    for number, row in sorted(rows.items(), key=lambda item: (isinstance(item[0], int), item[0])):
        size = backend.get_vocab_size()
        token = row.get("content") if isinstance(row, dict) else None
        if isinstance(number, int) and isinstance(token, str) and backend.token_to_id(token) == number:
            continue  # of the vocabulary
        if number != size or not isinstance(token, str) or backend.token_to_id(token) is not None:
            expected = f"a new token for {size}, the next number"
            raise ConversionError(Problem(f"added token {str(token)[:40]!r}", expected, repr(number)[:40]), source=str(folder))
        flags = {
            name: row[name] for name in ("single_word", "lstrip", "rstrip", "normalized", "special") if isinstance(row.get(name), bool)
        }
        backend.add_tokens([AddedToken(token, **flags)])
    return str(backend.to_str())


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
