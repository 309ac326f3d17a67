"""xSID (arXiv 2105.07316): number, word, intent and slot tag between tabs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from engine.prune.data.sentences import Block, Reading, Sentence, is_empty
from engine.prune.data.tags import EXPECTED_TAG, TAG

NUMBER = re.compile(r"[1-9][0-9]{0,9}")


def looks_like_xsid(lines: Iterable[str]) -> bool:
    """Whether lines begin with a comment, words are numbered in four fields, and a sentence has one intent, which is no tag."""
    lines = list(lines)
    rows = [line.split("\t") for line in lines if not is_empty(line) and not line.startswith("#")]
    if not lines[:1] or not lines[0].startswith("#") or not rows or not all(len(row) == 4 and row[0].isdecimal() for row in rows):
        return False
    intents = [row[2] for row in rows]
    same = all(row[0] == "1" or row[2] == before for row, before in zip(rows[1:], intents, strict=False))
    return same and not any(map(TAG.fullmatch, intents))


def read_xsid(path: Path, encoding: str = "utf-8") -> list[Sentence]:
    """xSID (arXiv 2105.07316): comments, then number, word, intent and slot tag of each word; the intent is not read.

    The Chinese files number some blanks as words, tagged O: they are passed over.
    """
    reading, sentences, block = Reading(path, encoding), list[Sentence](), Block(path)
    place = 0
    for number, line in reading.lines():
        if is_empty(line):
            block.close(sentences)
            place = 0
            continue
        if line.startswith("#") and "\t" not in line:
            continue
        fields = line.split("\t")
        if len(fields) != 4:
            reading.problem(number, "number, word, intent and slot between tabs", f"{len(fields)} fields: {line[:40]!r}")
            place += fields[0] == str(place + 1)  # so that the words after it are not problems too
            continue
        place += 1
        if fields[0] != str(place):
            reading.problem(number, f"word {place}", repr(fields[0][:40]))
            place = int(fields[0]) if NUMBER.fullmatch(fields[0]) else place
        if TAG.fullmatch(fields[3]) is None:
            reading.problem(number, f"{EXPECTED_TAG} in the fourth field", repr(fields[3][:40]))
        elif fields[1].strip():  # also blanks that are none elsewhere, as U+3000
            block.add(fields[1], fields[3], number)
        elif fields[3] != "O":
            reading.problem(number, f"a word tagged {fields[3]}", "nothing")
    block.close(sentences)
    return reading.finish(sentences)
