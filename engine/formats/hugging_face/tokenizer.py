"""The tokenizer of a Hugging Face directory: tokenizer.json as it stands, or made from the vocabulary files beside the tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from engine.checkpoint.side_files import SideFiles
from engine.checkpoint.tokenizer import Tokenizer
from engine.checkpoint.tokenizer_pretrained import byte_pairs, unigrams, word_pieces
from engine.errors import ConversionError, Problem
from engine.formats.source_tokenizer import TOKENIZER

SETTINGS, ADDED = "tokenizer_config.json", "added_tokens.json"
VOCABULARIES = ("vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model")


def read_hugging_face_tokenizer(
    make: Callable[[SideFiles, Mapping[str, Any]], str | None], model_type: str, files: SideFiles, notes: list[str]
) -> str | None:
    """The text of a tokenizer.json, or None; make: the architecture's own way from vocabulary files, one of those below.

    Raises ConversionError or CheckpointError for files that are not what their names say.
    """
    if files.has(TOKENIZER):
        text = files.text(TOKENIZER)
        Tokenizer.from_json(text, source=str(files.folder / TOKENIZER))
        return text
    settings = files.json_object(SETTINGS) if files.has(SETTINGS) else {}
    try:
        made = make(files, settings)
        if made is not None:
            return _with_added(made, files, settings)
    except (ConversionError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises bare Exception, and its panics are no Exception
        problem = Problem("vocabulary", "files the tokenizers library takes", str(error)[:200])
        raise ConversionError(problem, source=str(files.folder)) from None
    if unread := [name for name in VOCABULARIES if files.has(name)]:
        notes.append(f"{', '.join(unread)} not read: no tokenizer is made from them for model_type {model_type}")
    return None


def word_piece_files(files: SideFiles, settings: Mapping[str, Any]) -> str | None:
    """BERT's kind: vocab.txt."""
    if not files.has("vocab.txt"):
        return None
    tokens = [line.removesuffix("\r") for line in files.text("vocab.txt").removesuffix("\n").split("\n")]
    return word_pieces(
        tokens,
        lower=settings.get("do_lower_case", True) is not False,
        chinese=settings.get("tokenize_chinese_chars", True) is not False,
        strip_accents=settings.get("strip_accents") if isinstance(settings.get("strip_accents"), bool) else None,
    )


def byte_pair_files(files: SideFiles, settings: Mapping[str, Any], *, roberta: bool) -> str | None:
    """GPT-2's kind, and RoBERTa's: vocab.json and merges.txt."""
    if not files.has("vocab.json") or not files.has("merges.txt"):
        return None
    prefix_space = settings.get("add_prefix_space") is True
    return byte_pairs(files.json_object("vocab.json"), _merges(files, "merges.txt"), roberta=roberta, prefix_space=prefix_space)


def unigram_files(files: SideFiles, _: Mapping[str, Any], *, camembert: bool) -> str | None:
    """XLM-R's kind, and CamemBERT's: sentencepiece.bpe.model."""
    path = files.folder / "sentencepiece.bpe.model"
    if not files.has(path.name):
        return None
    return unigrams(files.bytes(path, ConversionError), camembert=camembert, source=str(path))


def _with_added(made: str, files: SideFiles, settings: Mapping[str, Any]) -> str:
    """With the tokens users added behind the vocabulary: added_tokens.json, and tokenizer_config.json where it says how they match."""
    backend = Backend.from_str(made)
    plain = files.json_object(ADDED) if files.has(ADDED) else {}
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
            raise ConversionError(Problem(f"added token {str(token)[:40]!r}", expected, repr(number)[:40]), source=str(files.folder))
        flags = {
            name: row[name] for name in ("single_word", "lstrip", "rstrip", "normalized", "special") if isinstance(row.get(name), bool)
        }
        backend.add_tokens([AddedToken(token, **flags)])
    return str(backend.to_str())


def _merges(files: SideFiles, name: str) -> list[tuple[str, str]]:
    """Pairs by line; a first line may name the version."""
    merges = []
    for number, line in enumerate(files.text(name).split("\n"), start=1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        pair = line.removesuffix("\r").split(" ")
        if len(pair) != 2:
            problem = Problem(f"line {number}", "two pieces with a space between", repr(line)[:60])
            raise ConversionError(problem, source=str(files.folder / name))
        merges.append((pair[0], pair[1]))
    return merges
