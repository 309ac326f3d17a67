"""CoNLL-U (universaldependencies.org/format.html): the syntactic words of a treebank with their universal part of speech."""

from __future__ import annotations

import re
from pathlib import Path

from engine.prune.data.sentences import Block, Reading, Sentence, is_empty

FIELDS = 10
FORM, UPOS = 1, 3
WORD = re.compile(r"[1-9][0-9]{0,9}")
RANGE = re.compile(r"([1-9][0-9]{0,9})-([1-9][0-9]{0,9})")  # a multi-word token: its words follow with their own numbers
EMPTY = re.compile(r"(0|[1-9][0-9]{0,9})\.[1-9][0-9]*")  # a node of the enhanced graph that stands for no word of the text


def read_conllu(path: Path, encoding: str = "utf-8") -> list[Sentence]:
    """FORM and UPOS of every syntactic word; the surface form of a multi-word token and empty nodes are passed over.

    Raises InputError with file and line of every line that is not CoNLL-U.
    """
    reading, sentences, block = Reading(path, encoding), list[Sentence](), Block(path)
    last, covered = 0, 0  # numbers of the word read last, and of the last word of the multi-word token being read
    for number, line in reading.lines():
        if not line:
            if last < covered:
                reading.problem(number, f"words up to {covered} of a multi-word token", f"the end of the sentence after {last}")
            block.close(sentences)
            last = covered = 0
            continue
        if line.startswith("#"):
            if len(block):
                reading.problem(number, "comments before the first word of a sentence", repr(line[:40]))
            continue
        fields = line.split("\t")
        if len(fields) != FIELDS:
            reading.problem(number, f"{FIELDS} fields between tabs", f"{len(fields)}: {line[:40]!r}")
            last += fields[0] == str(last + 1)  # so that the words after it are not problems too
            continue
        if (tokens := RANGE.fullmatch(fields[0])) is not None:
            first, end = int(tokens[1]), int(tokens[2])
            if first != last + 1 or end <= first or first <= covered:
                reading.problem(number, f"a multi-word token from {last + 1}", fields[0])
            covered = max(covered, end)
        elif (node := EMPTY.fullmatch(fields[0])) is not None:
            if int(node[1]) != last:
                reading.problem(number, f"an empty node after word {last}", fields[0])
        elif fields[0] != str(last + 1):
            reading.problem(number, f"word {last + 1}", repr(fields[0][:40]))
            last = int(fields[0]) if WORD.fullmatch(fields[0]) else last + 1
        else:
            last += 1
            if is_empty(fields[FORM]):
                reading.problem(number, "a word in the second field", "nothing")
            if is_empty(fields[UPOS]) or fields[UPOS] == "_":
                reading.problem(number, "a part of speech in the fourth field", repr(fields[UPOS]))
            block.add(fields[FORM], fields[UPOS], number)
    block.close(sentences)
    return reading.finish(sentences)
