"""What every reader gives, and what the readers share: numbered lines, sentences between empty lines, errors with a line number."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.errors import InputError, Problem
from engine.spec.strict_json import read_bytes

SHOWN = 20  # problems of one file that are listed


def blank_separated(line: str) -> list[str]:
    """Fields between spaces and tabs; other characters that Unicode calls white space are letters of a word."""
    return [field for field in re.split("[ \t]+", line) if field]


def is_empty(text: str) -> bool:
    """Whether there are only spaces and tabs."""
    return not text.strip(" \t")


@dataclass(frozen=True)
class Sentence:
    """Words and a label for each; path and line say where its first word stands."""

    words: tuple[str, ...]
    labels: tuple[str, ...]
    path: str
    line: int


class Reading:
    """One file being read: its problems are collected and raised together, each with the file and its line."""

    def __init__(self, path: Path, encoding: str = "utf-8") -> None:
        self.path = path
        self._encoding = encoding
        self._problems: list[Problem] = []

    def lines(self) -> Iterator[tuple[int, str]]:
        """Number from 1 and text of each line, which ends at LF or CR LF, or at CR in a file that has no LF.

        Raises InputError for a file that cannot be read, is not in its encoding, or has a CR elsewhere.
        """
        text = self._text()
        end = "\n" if "\n" in text else "\r"
        for number, line in enumerate(text.split(end), start=1):  # splitlines would also split at characters inside words
            content = line.removesuffix("\r")
            if "\r" in content:
                raise InputError(Problem(f"{self.path}:{number}", "a carriage return only at the end of a line", repr(content[:40])))
            yield number, content

    def _text(self) -> str:
        data = read_bytes(self.path, InputError)
        name = self._encoding.upper()
        try:
            return data.decode("utf-8-sig" if name in ("UTF-8", "UTF8") else self._encoding)
        except UnicodeDecodeError as error:
            number = data.count(b"\n", 0, error.start) + 1
            hint = "--encoding reads other encodings, such as latin-1, cp1252 or utf-16"
            raise InputError(Problem(f"{self.path}:{number}", f"text in {name}", f"byte 0x{data[error.start]:02x}"), hint=hint) from None
        except (LookupError, ValueError):  # ValueError: a name with a zero character, and what UnicodeError is
            raise InputError(Problem("encoding", "a text encoding, such as utf-8, latin-1 or cp1252", repr(self._encoding))) from None

    def problem(self, line: int, expected: str, found: str) -> None:
        self._problems.append(Problem(f"{self.path}:{line}", expected, found))

    def finish(self, sentences: list[Sentence]) -> list[Sentence]:
        """The sentences; raises InputError with every problem, or where there are none."""
        if self._problems:
            more = len(self._problems) - SHOWN
            hint = f"and {more} more lines of this file are malformed" if more > 0 else None
            raise InputError(self._problems[:SHOWN], hint=hint)
        if not sentences:
            raise InputError(Problem(str(self.path), "at least one labelled sentence", "none"))
        return sentences


class Block:
    """Words and labels of the sentence being read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._words: list[str] = []
        self._labels: list[str] = []
        self._line = 0

    def __len__(self) -> int:
        return len(self._words)

    def add(self, word: str, label: str, line: int) -> None:
        if not self._words:
            self._line = line
        self._words.append(word)
        self._labels.append(label)

    def close(self, into: list[Sentence]) -> None:
        """The sentence ends here; one without words is none."""
        if self._words:
            into.append(Sentence(tuple(self._words), tuple(self._labels), str(self._path), self._line))
        self._words, self._labels = [], []
