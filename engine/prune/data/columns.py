"""Words and tags in columns, one word a line, sentences between empty lines: IOB2 and BIO files, MeCab columns, xSID."""

from __future__ import annotations

import re
from pathlib import Path

from engine.prune.data.sentences import Block, Reading, Sentence

TAG = re.compile(r"O|[BI]-\S+")
LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z]+)?:(?=.)")  # WikiANN writes "en:word"
DOCUMENT = "-DOCSTART-"
NUMBER = re.compile(r"[1-9][0-9]{0,9}")


def read_columns(path: Path) -> list[Sentence]:
    """The first column is the word, the last its IOB2 tag; columns by tabs, or by blanks in a file without tabs.

    WikiANN's language before each word is taken off where every word has the same. A tag I-x that continues nothing, which real files
    hold, stays as it is: the metric reads it as a beginning. Raises InputError with file and line of every malformed line.
    """
    reading = Reading(path)
    lines = list(reading.lines())
    separator = "\t" if any("\t" in line for _, line in lines) else None
    sentences, block = list[Sentence](), Block(path)
    for number, line in lines:
        fields = line.split(separator)
        if not line.strip() or fields[0] == DOCUMENT:
            block.close(sentences)
        elif len(fields) < 2:
            reading.problem(number, "a word and its tag in columns", repr(line[:40]))
        elif not fields[0].strip():
            reading.problem(number, "a word in the first column", repr(line[:40]))
        elif TAG.fullmatch(fields[-1]) is None:
            reading.problem(number, "O, B-… or I-… in the last column", repr(fields[-1][:40]))
        else:
            block.add(fields[0], fields[-1], number)
    block.close(sentences)
    return _without_language(reading.finish(sentences))


def read_xsid(path: Path) -> list[Sentence]:
    """xSID (arXiv 2105.07316): comments, then number, word, intent and slot tag of each word; the intent is not read.

    The Chinese files number some blanks as words, tagged O: they are passed over.
    """
    reading, sentences, block = Reading(path), list[Sentence](), Block(path)
    place = 0
    for number, line in reading.lines():
        if not line.strip():
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
            reading.problem(number, "O, B-… or I-… in the fourth field", repr(fields[3][:40]))
        elif fields[1].strip():
            block.add(fields[1], fields[3], number)
        elif fields[3] != "O":
            reading.problem(number, f"a word tagged {fields[3]}", "nothing")
    block.close(sentences)
    return reading.finish(sentences)


def _without_language(sentences: list[Sentence]) -> list[Sentence]:
    found = {match[0] if (match := LANGUAGE.match(word)) else "" for sentence in sentences for word in sentence.words}
    if len(found) != 1 or found == {""}:
        return sentences
    start = len(found.pop())
    return [Sentence(tuple(word[start:] for word in s.words), s.labels, s.path, s.line) for s in sentences]
