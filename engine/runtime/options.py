"""What a caller may ask of a generation: names, defaults and bounds, each said once."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from engine.errors import InputError, Problem

Method = TypeVar("Method", bound=Callable[..., Any])
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


@dataclass(frozen=True)
class Rule:
    """What an option has to be, in words and as a check, and the type it is kept as. None is always right where it is the default."""

    expected: str
    fits: Callable[[Any], bool]
    kept_as: Callable[[Any], Any]


RULES = {
    "max_new_tokens": Rule("an integer of at least 1", lambda value: _integer(value, 1), int),
    "temperature": Rule("a finite number of at least 0 (0 = greedy)", _temperature, float),
    "top_k": Rule("an integer of at least 1, or None", lambda value: _integer(value, 1), int),
    "top_p": Rule("a number above 0 and at most 1, or None", _share, float),
    "seed": Rule(f"an integer from 0 to {MAX_SEED}, or None", lambda value: _integer(value, 0, MAX_SEED), int),
    "logprobs": Rule("an integer of at least 0", lambda value: _integer(value, 0), int),
}
DEFAULTS = {name: getattr(GenerationOptions, name) for name in RULES} | {"stop": None}


def takes_options(method: Method) -> Method:
    """A method of **options whose signature names them, each with its default and its type."""
    signature, types = inspect.signature(method), GenerationOptions.__annotations__
    *own, rest = signature.parameters.values()
    named = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=types.get(name, Any))
        for name, default in DEFAULTS.items()
    ]
    method.__signature__ = signature.replace(parameters=[*own, *named, rest])  # type: ignore[attr-defined]
    return method


def generation_options(given: Mapping[str, Any], *, vocab: int, has_tokenizer: bool) -> GenerationOptions:
    """Check the options of `generate` and `stream`; raises InputError with every one that is unknown or out of range."""
    problems: list[Problem] = []
    values: dict[str, Any] = {}
    for name, rule in RULES.items():
        value = given.get(name, DEFAULTS[name])
        if value is None and DEFAULTS[name] is None:
            values[name] = None
        elif rule.fits(value):
            values[name] = rule.kept_as(value)
        else:
            problems.append(Problem(name, rule.expected, _shown(value)))
    for name in given:
        if name not in DEFAULTS:
            problems.append(Problem(f"option {name}", "one of " + ", ".join(DEFAULTS), _shown(given[name])))
    ids, texts = _stops(given.get("stop"), vocab, has_tokenizer, problems)
    if problems:
        raise InputError(problems)
    if values["top_k"] is not None and values["top_k"] >= vocab:
        values["top_k"] = None  # cuts nothing
    if values["top_p"] == 1:
        values["top_p"] = None
    return GenerationOptions(**values, stop_ids=ids, stop_texts=texts)


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


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
