"""What a caller may ask of a generation, checked once."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.errors import InputError, Problem

MAX_SEED = 2**64 - 1


@dataclass(frozen=True)
class GenerationOptions:
    """temperature 0 is greedy; seed None draws one from the operating system; stop is split into token ids and texts."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    stop_ids: frozenset[int] = frozenset()
    stop_texts: tuple[str, ...] = ()
    logprobs: int = 0


def generation_options(given: Mapping[str, Any], *, vocab: int, has_tokenizer: bool) -> GenerationOptions:
    """Check the options of `generate` and `stream`; raises InputError with every one that is unknown or out of range."""
    problems: list[Problem] = []
    rules: dict[str, tuple[str, bool]] = {
        "max_new_tokens": ("an integer of at least 1", _integer(given.get("max_new_tokens", 128), 1)),
        "temperature": ("a finite number of at least 0 (0 = greedy)", _temperature(given.get("temperature", 0))),
        "top_k": ("an integer of at least 1, or None", given.get("top_k") is None or _integer(given["top_k"], 1)),
        "top_p": ("a number above 0 and at most 1, or None", given.get("top_p") is None or _share(given["top_p"])),
        "seed": (f"an integer from 0 to {MAX_SEED}, or None", given.get("seed") is None or _integer(given["seed"], 0, MAX_SEED)),
        "logprobs": ("an integer of at least 0", _integer(given.get("logprobs", 0), 0)),
    }
    for name, (expected, fits) in rules.items():
        if not fits:
            problems.append(Problem(name, expected, _shown(given[name])))
    for name in given:
        if name not in rules and name != "stop":
            problems.append(Problem(f"option {name}", "one of " + ", ".join([*rules, "stop"]), _shown(given[name])))
    ids, texts = _stops(given.get("stop"), vocab, has_tokenizer, problems)
    if problems:
        raise InputError(problems)
    return GenerationOptions(
        max_new_tokens=int(given.get("max_new_tokens", 128)),
        temperature=float(given.get("temperature", 0)),
        top_k=None if given.get("top_k") is None or given["top_k"] >= vocab else int(given["top_k"]),
        top_p=None if given.get("top_p") is None or given["top_p"] == 1 else float(given["top_p"]),
        seed=None if given.get("seed") is None else int(given["seed"]),
        stop_ids=ids,
        stop_texts=texts,
        logprobs=int(given.get("logprobs", 0)),
    )


def _stops(stop: Any, vocab: int, has_tokenizer: bool, problems: list[Problem]) -> tuple[frozenset[int], tuple[str, ...]]:
    """A text, a token id, or a list of both."""
    if stop is None:
        return frozenset(), ()
    entries = stop if isinstance(stop, (list, tuple, set, frozenset)) else [stop]
    ids, texts = [], []
    for entry in entries:
        if isinstance(entry, str) and entry:
            texts.append(entry)
        elif _integer(entry, 0, vocab - 1):
            ids.append(int(entry))
        else:
            problems.append(Problem("stop", f"texts that are not empty and token ids from 0 to {vocab - 1}", _shown(entry)))
    if texts and not has_tokenizer:
        problems.append(Problem("stop", "token ids, for this model has no tokenizer", _shown(texts[0])))
    return frozenset(ids), tuple(texts)


def _integer(value: Any, least: int, most: int | None = None) -> bool:
    try:
        number = operator.index(value)
    except TypeError:
        return False
    return not isinstance(value, bool) and least <= number and (most is None or number <= most)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) or (hasattr(value, "__float__") and getattr(value, "ndim", 1) == 0)


def _temperature(value: Any) -> bool:
    return _number(value) and not isinstance(value, bool) and value >= 0 and _finite(value)


def _share(value: Any) -> bool:
    return _number(value) and not isinstance(value, bool) and 0 < value <= 1


def _finite(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
