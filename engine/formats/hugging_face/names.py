"""A state dict by the names its architecture has: old names of norms, and what stands in front of the whole model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from engine.errors import Problem
from engine.formats.hugging_face.architecture import Architecture
from engine.formats.names import is_average, renamed

OLD_NAMES = {".gamma": ".weight", ".beta": ".bias"}  # of norms, before 2019


def own_names(
    tensors: Mapping[str, np.ndarray], architecture: Architecture, others: Iterable[str], problems: list[Problem], notes: list[str]
) -> dict[str, np.ndarray]:
    """The tensors by the names the architecture reads; one problem where none of them is of it, or where there are several models.

    others: prefixes of architectures with the same layers, which are no wrapper of this one.
    """
    tensors = _new_norms(tensors)
    if not architecture.layers:
        return tensors
    found = _prefixes(tensors, architecture)
    averages = [prefix for prefix in found if is_average(prefix)]
    if len(found) - len(averages) == 1 and averages:
        notes.append(f"the tensors under {', '.join(averages)} are not read: an average of the trained ones")
        tensors = {name: array for name, array in tensors.items() if not name.startswith(tuple(averages))}
        found = [prefix for prefix in found if prefix not in averages]
    if len(found) != 1 or found[0].split(".")[-2:-1] in [[other] for other in others]:
        problems.append(_foreign(tensors, architecture, found))
        return {}
    if found[0]:
        notes.append(f"{found[0]} in front of the model's names left out")
    return renamed(tensors, lambda name: name.removeprefix(found[0]), problems)


def _prefixes(names: Iterable[str], architecture: Architecture) -> list[str]:
    """What stands before the model's own names, with its dot, of each model that is there; '' where nothing does."""
    inside, bare = f".{architecture.prefix}.{architecture.layers}", f".{architecture.layers}"
    found: dict[str, None] = {}
    for name in names:
        places = [place for place in (f".{name}".find(inside), f".{name}".find(bare)) if place >= 0]
        if places:
            found[name[: places[0]]] = None
    return list(found)


def _foreign(names: Iterable[str], architecture: Architecture, found: list[str]) -> Problem:
    if len(found) > 1:
        return Problem("tensors", "those of one model", "several, under " + ", ".join(repr(prefix) for prefix in found[:4]))
    shown = list(names)
    more = f" and {len(shown) - 4} more" if len(shown) > 4 else ""
    expected = f"names that start with {architecture.prefix}.{architecture.layers}0. or {architecture.layers}0."
    return Problem("tensors", expected, (", ".join(shown[:4]) or "none") + more)


def _new_norms(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    result = {}
    for name, array in tensors.items():
        for old, new in OLD_NAMES.items():
            if name.endswith(f"LayerNorm{old}") and name.removesuffix(old) + new not in tensors:
                name = name.removesuffix(old) + new
        result[name] = array
    return result
