"""A path → labelled sentences, its format told by the user or by the path itself; a literal table."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from engine.errors import InputError, Problem
from engine.prune.data.columns import read_columns
from engine.prune.data.conllu import read_conllu
from engine.prune.data.lines import read_slots, read_tagged_lines
from engine.prune.data.sentences import Reading, Sentence, is_empty
from engine.prune.data.xsid import looks_like_xsid, read_xsid

FORMATS: dict[str, Callable[[Path, str], list[Sentence]]] = {
    "conllu": read_conllu,
    "columns": read_columns,
    "xsid": read_xsid,
    "slots": read_slots,
    "tagged-lines": read_tagged_lines,
}


def read_sentences(
    paths: str | os.PathLike[str] | Sequence[str], format: str = "auto", limit: int | None = None, encoding: str = "utf-8"
) -> list[Sentence]:
    """The sentences of a file or folder, or of several in their order; limit: the first so many of each.

    format: auto or a key of FORMATS; auto takes .conllu by its name, a folder for slots, a comment and number, word, intent and
    slot for xSID, one tab between sentences of words and tags for tagged lines, else columns. encoding: a name that Python knows.
    Raises InputError with the file and line of whatever is malformed.
    """
    if format != "auto" and format not in FORMATS:
        raise InputError(Problem("data format", "auto, " + ", ".join(FORMATS), repr(format)))
    if limit is not None and limit < 1:
        raise InputError(Problem("limit", "a positive number of sentences", str(limit)))
    several = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    sentences: list[Sentence] = []
    for path in several:
        name = _format_of(Path(path), encoding) if format == "auto" else format
        sentences += FORMATS[name](Path(path), encoding)[:limit]
    return sentences


def _format_of(path: Path, encoding: str) -> str:
    if path.is_dir():
        return "slots"
    if path.suffix == ".conllu":
        return "conllu"
    first = [line for _, line in Reading(path, encoding).lines() if not is_empty(line)][:200]
    if looks_like_xsid(first):
        return "xsid"
    rows = [line.split("\t") for line in first if not line.startswith("#")]
    if rows and all(len(row) == 2 and row[0].count(" ") == row[1].count(" ") for row in rows) and any(" " in row[1] for row in rows):
        return "tagged-lines"
    return "columns"
