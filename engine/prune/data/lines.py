"""A sentence a line: SNIPS and ATIS folders (seq.in, seq.out), and words TAB tags as UD_Arabic-PADT is published."""

from __future__ import annotations

from pathlib import Path

from engine.prune.data.sentences import Reading, Sentence, blank_separated, is_empty
from engine.prune.data.tags import EXPECTED_TAG, TAG

WORDS, TAGS = "seq.in", "seq.out"
SURFACE = "_"  # the tag of a multi-word token's surface form, whose words follow


def read_slots(folder: Path, encoding: str = "utf-8") -> list[Sentence]:
    """A folder with seq.in and seq.out (arXiv 1805.10190 in the layout of arXiv 1902.10909): words, and a slot tag for each.

    Raises InputError with file and line of every line whose words and tags do not match.
    """
    reading, tags = Reading(folder / TAGS, encoding), dict(Reading(folder / TAGS, encoding).lines())
    sentences: list[Sentence] = []
    for number, line in Reading(folder / WORDS, encoding).lines():
        words, labels = blank_separated(line), blank_separated(tags.pop(number, ""))
        if len(words) != len(labels):
            reading.problem(number, f"{len(words)} tags, one for each word of {WORDS}", str(len(labels)))
        elif wrong := [label for label in labels if TAG.fullmatch(label) is None]:
            reading.problem(number, EXPECTED_TAG, repr(wrong[0][:40]))
        elif words:
            sentences.append(Sentence(tuple(words), tuple(labels), str(folder / WORDS), number))
    for number, line in tags.items():
        if not is_empty(line):
            reading.problem(number, f"no tags: {WORDS} ends before", repr(line[:40]))
    return reading.finish(sentences)


def read_tagged_lines(path: Path, encoding: str = "utf-8") -> list[Sentence]:
    """Words TAB tags, both between blanks; words tagged `_`, surface forms of multi-word tokens, are passed over."""
    reading, sentences = Reading(path, encoding), list[Sentence]()
    for number, line in reading.lines():
        if is_empty(line):
            continue
        fields = line.split("\t")
        if len(fields) != 2:
            reading.problem(number, "words, a tab and their tags", f"{len(fields)} fields: {line[:40]!r}")
            continue
        words, tags = (field.split(" ") for field in fields)
        if len(words) != len(tags):
            reading.problem(number, f"{len(words)} tags, one for each word", str(len(tags)))
        elif not all(words) or not all(tags):
            reading.problem(number, "one blank between two words", repr(line[:40]))
        elif kept := [pair for pair in zip(words, tags, strict=True) if pair[1] != SURFACE]:
            sentences.append(Sentence(tuple(word for word, _ in kept), tuple(tag for _, tag in kept), str(path), number))
    return reading.finish(sentences)
