"""Command-line values of a source program, as people keep them beside a checkpoint: groups, dashes and internal names made flat flags."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from engine.errors import Problem

VOCABULARY = ("chars", "vocab", "words")  # read by source_tokenizer
LOOKS_LIKE = 0.8  # difflib ratio from which an unknown name is taken for a misspelled setting


def flat_flags(given: Mapping[str, Any], synonyms: Mapping[str, str], origin: str, problems: list[Problem]) -> dict[str, Any]:
    """Flag → value: groups (`model_params`, …) opened, dashes made underscores, synonyms renamed; two values for one flag are a problem."""
    flags: dict[str, Any] = {}
    for name, value in _entries(given):
        flag = name.lstrip("-").replace("-", "_")
        flag = synonyms.get(flag, flag)
        if flag in flags and flags[flag] != value:
            problems.append(Problem(f"{origin} {flag}", "one value", f"{flags[flag]!r} and {value!r}"[:80]))
        flags[flag] = value
    return flags


def _entries(given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    groups = [given]
    while groups:
        for name, value in groups.pop().items():
            if isinstance(value, Mapping) and name.endswith("_params"):
                groups.append(value)
            elif value is not None:
                yield name, value


def report_unknown(
    flags: Mapping[str, Any], settings: Sequence[str], training: Sequence[str], problems: list[Problem], notes: list[str]
) -> list[str]:
    """An unknown flag that looks like a setting is a problem, any other a note; flags of training alone are passed over.

    The flags noted, which are on no list.
    """
    unread = []
    for name in flags:
        if name in settings or name in training or name in VOCABULARY:
            continue
        meant = difflib.get_close_matches(name, [setting for setting in settings if setting not in flags], 1, LOOKS_LIKE)
        if meant:
            problems.append(Problem(f"config {name}", f"a setting of this format, such as {meant[0]}", repr(flags[name])[:60]))
        else:
            notes.append(f"{name} of the configuration is not known and not used")
            unread.append(name)
    return unread
