"""The labels of a task: their numbers, and what a model that was trained on them says they are."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import InputError, Problem
from engine.prune.data.sentences import SHOWN, Reading, Sentence
from engine.prune.data.tags import PLACES

NO_LABELS = ("PAD", "UNK")  # lines of a label file of SNIPS and ATIS that no word has


@dataclass(frozen=True)
class LabelSet:
    """Label i of the head is names[i]."""

    names: tuple[str, ...]

    @property
    def spans(self) -> bool:
        """Whether the labels mark spans (B-…, I-…, O, or those of BIOES and BILOU), and not one class a word."""
        return all(name == "O" or name[:2] in PLACES for name in self.names)

    def encode(self, sentences: Iterable[Sentence]) -> list[list[int]]:
        """Label numbers of each sentence; raises InputError with file and line where a label is not of this set."""
        numbers = {name: index for index, name in enumerate(self.names)}
        first: dict[str, Sentence] = {}
        encoded = []
        for sentence in sentences:
            for label in sentence.labels:
                if label not in numbers:
                    first.setdefault(label, sentence)
            encoded.append([numbers.get(label, -1) for label in sentence.labels])
        if first:
            problems = [Problem(f"{s.path}:{s.line}", "a label of the model", repr(label)) for label, s in first.items()]
            known = ", ".join(self.names[:SHOWN]) + (f" and {len(self.names) - SHOWN} more" if len(self.names) > SHOWN else "")
            hint = f"the model's labels are {known}; for one still to be trained, `trials` takes them from --labels FILE, one a line"
            raise InputError(problems[:SHOWN], hint=hint)
        return encoded


def labels_of(sentences: Iterable[Sentence]) -> LabelSet:
    """Every label of the (training) sentences, in alphabetical order."""
    return LabelSet(tuple(sorted({label for sentence in sentences for label in sentence.labels})))


def read_labels(path: str, encoding: str = "utf-8") -> LabelSet:
    """One label a line; PAD and UNK, which such files hold for programs, are passed over. Raises InputError."""
    reading = Reading(Path(path), encoding)
    names: dict[str, int] = {}
    for number, line in reading.lines():
        name = line.strip(" \t")
        if not name or name in NO_LABELS:
            continue
        if name in names:
            reading.problem(number, "each label once", f"{name!r} again, after line {names[name]}")
        names[name] = number
    reading.finish([Sentence(tuple(names), tuple(names), path, 1)] if names else [])
    return LabelSet(tuple(names))


def labels_of_model(provenance: Mapping[str, Any], count: int) -> LabelSet | None:
    """What the model's own labels are called, from its training here or from a Hugging Face configuration's id2label; None if unsaid.

    Raises InputError where there are other than `count` of them.
    """
    config = provenance.get("config")
    named = provenance.get("labels") or (config.get("id2label") if isinstance(config, Mapping) else None)
    if named is None:
        return None
    names: Sequence[Any] = [named.get(str(index)) for index in range(len(named))] if isinstance(named, Mapping) else list(named)
    if len(names) != count or len(set(map(str, names))) != count or not all(isinstance(name, str) for name in names):
        raise InputError(Problem("labels of the model", f"a name for each of {count} labels", json.dumps(named)[:80]))
    return LabelSet(tuple(names))
