"""Words and tags in columns, one word a line, sentences between empty lines: IOB2, BIOES, MeCab columns, numbered columns, GermEval."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from engine.prune.data.sentences import Block, Reading, Sentence, blank_separated, is_empty
from engine.prune.data.tags import EXPECTED_TAG, TAG

LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z]+)?:(?=.)")  # WikiANN writes "en:word"
DOCUMENT = "-DOCSTART-"
NUMBER = re.compile(r"0|[1-9][0-9]{0,9}")
# Of CoNLL-2000, and of German texts.
CHUNK_TYPES = frozenset({"NP", "VP", "PP", "ADVP", "ADJP", "SBAR", "PRT", "CONJP", "INTJ", "LST", "UCP", "NC", "VC", "PC"})

Row = tuple[int, list[str]]  # line number and columns; no columns where a sentence ends


def read_columns(path: Path, encoding: str = "utf-8") -> list[Sentence]:
    """The first column is the word, the last its tag; columns by tabs, or by blanks where no word line has a tab inside.

    A first column that counts the words, before two others or more, is passed over; of number, word and two tags (GermEval 2014) the
    first tag, the outer one, is the label. Lines that start with # are comments where no word of the sentence came yet and they have
    not the columns of a word. WikiANN's language before each word is taken off where every word has the same. A tag I-x that continues
    nothing, which real files hold, stays as it is: the metric reads it as a beginning. Raises InputError with file and line of every
    malformed line.
    """
    reading = Reading(path, encoding)
    rows = list(_rows(list(reading.lines())))
    numbered = _is_numbered(rows, reading)
    word, tag = int(numbered), 2 if numbered and _has_nested_tags(rows) else -1
    sentences, block, last = list[Sentence](), Block(path), 0
    for number, fields in rows:
        if not fields:
            block.close(sentences)
            continue
        if numbered:
            if not _follows(fields[0], last, first=len(block) == 0):
                reading.problem(number, f"{last + 1} in the first column, which counts the words", repr(fields[0][:40]))
            last = int(fields[0]) if NUMBER.fullmatch(fields[0]) else last
        if len(fields) < 2 + word:
            reading.problem(
                number, "a number, a word and its tag in columns" if numbered else "a word and its tag in columns", _shown(fields)
            )
        elif is_empty(fields[word]):
            reading.problem(number, f"a word in the {'second' if numbered else 'first'} column", _shown(fields))
        elif TAG.fullmatch(fields[tag]) is None:
            reading.problem(number, f"{EXPECTED_TAG} in the {'third' if tag == 2 else 'last'} column", repr(fields[tag][:40]))
        else:
            block.add(fields[word], fields[tag], number)
    block.close(sentences)
    return _without_language(reading.finish(sentences))


def _rows(lines: Sequence[tuple[int, str]]) -> Iterator[Row]:
    """Columns of every word line, none where a sentence ends. The separator is that of the word lines, whatever comments hold."""
    words = [line for _, line in lines if not is_empty(line) and not _is_document(line)]
    certain = [line for line in words if not line.startswith("#")] or words
    tabs = any("\t" in line.strip(" \t") for line in certain)
    usual = len(_columns(certain[0], tabs)) if certain else 0
    inside = False
    for number, line in lines:
        fields = _columns(line, tabs)
        if is_empty(line) or _is_document(line):
            inside = False
            yield number, []
        elif inside or not _is_comment(line, fields, usual):
            inside = True
            yield number, fields


def _columns(line: str, tabs: bool) -> list[str]:
    return line.split("\t") if tabs else blank_separated(line)


def _is_document(line: str) -> bool:
    return blank_separated(line)[:1] == [DOCUMENT]


def _is_comment(line: str, fields: list[str], usual: int) -> bool:
    """Whether a line before the first word of a sentence is a comment: `# O` and `#tag O` are words, so is `#tag` that lacks its tag."""
    parts = blank_separated(line)
    if not line.startswith("#") or len(parts) < 2:
        return False
    return len(fields) != usual or (parts[0] == "#" and TAG.fullmatch(parts[-1]) is None)


def _is_numbered(rows: Sequence[Row], reading: Reading) -> bool:
    """Whether the first of three columns or more counts the words, which most lines must do; a problem where that cannot be told.

    Two columns are a word and its tag, whatever the words are.
    """
    words = counting = told = last = 0  # told: numbers other than those a sentence starts with
    first = True
    for _, fields in rows:
        if fields:
            words += 1
            if len(fields) > 2 and _follows(fields[0], last, first):
                counting += 1
                told += not first or fields[0] not in ("0", "1")
            last = int(fields[0]) if NUMBER.fullmatch(fields[0]) else last
        first = not fields
    if 2 * counting <= words:
        return False
    if not told:
        line = next(number for number, fields in rows if fields)
        reading.problem(line, "words, or numbers that count them, in the first column", "1 before single words: either")
    return True


def _follows(field: str, last: int, first: bool) -> bool:
    """Whether a number continues the one before; the first word of a sentence may be 0 or 1 again."""
    return field == str(last + 1) or (first and field in ("0", "1"))


def _has_nested_tags(rows: Sequence[Row]) -> bool:
    """Whether rows are number, word, tag and a tag nested in it, and not number, word, chunk and tag."""
    tags = [fields[2] if len(fields) == 4 else "" for _, fields in rows if fields]
    return all(map(TAG.fullmatch, tags)) and not {tag[2:] for tag in tags if tag != "O"} & CHUNK_TYPES


def _shown(fields: list[str]) -> str:
    return repr("\t".join(fields)[:40])


def _without_language(sentences: list[Sentence]) -> list[Sentence]:
    found = {match[0] if (match := LANGUAGE.match(word)) else "" for sentence in sentences for word in sentence.words}
    if len(found) != 1 or found == {""}:
        return sentences
    start = len(found.pop())
    return [Sentence(tuple(word[start:] for word in s.words), s.labels, s.path, s.line) for s in sentences]
