"""Which architecture a source is of: an option, its configuration, or what its class and its tensors are called."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from engine.errors import ConversionError, Problem
from engine.formats.hugging_face.table import ARCHITECTURES

SAY = "-o model_type=NAME (model_type=) says"


def model_type(config: Mapping[str, Any], options: Mapping[str, Any], names: Iterable[str], source: str, notes: list[str]) -> str:
    """A key of ARCHITECTURES. Raises ConversionError with the list of them where nothing tells one."""
    said, given = options.get("model_type"), config.get("model_type")
    kind = given if said is None else said
    if said is not None and given not in (None, said):
        notes.append(f"model_type: the option {said!r} replaces {given!r} of the configuration")
    if kind is None and config:
        kind = _told(config, list(names))
        if kind is not None:
            notes.append(f"model_type {kind}: the configuration has none, names tell it; {SAY} another")
    if isinstance(kind, str) and kind in ARCHITECTURES:
        return kind
    nothing = f"nothing: {'the configuration has none' if config else 'no config.json beside the file'}"
    found = repr(kind)[:60] if kind is not None else nothing
    hint = "see the support table in README.md" if kind is not None or not config else f"{SAY} it"
    where = "config model_type" if said is None else "option model_type"
    raise ConversionError(Problem(where, "one of " + ", ".join(ARCHITECTURES), found), source=source, hint=hint)


def _told(config: Mapping[str, Any], names: list[str]) -> str | None:
    """By the class, by what stands before the layers, or by the layers alone where one architecture has such."""
    classes = config.get("architectures")
    name = classes[0] if isinstance(classes, list) and classes and isinstance(classes[0], str) else ""
    rows = ARCHITECTURES.items()
    of_class = [kind for kind, row in rows if any(name == row.classes + ending for ending in row.tasks)]
    dotted = [f".{name}" for name in names]
    by_prefix = [kind for kind, row in rows if row.layers and _has(dotted, f".{row.prefix}.{row.layers}")]
    if of_class or by_prefix:
        return (of_class or by_prefix)[0]
    bare = [kind for kind, row in rows if row.layers and _has(dotted, f".{row.layers}")]
    if "bert" in bare:  # RoBERTa's layers are called the same, and its positions start behind the pad token
        plain = config.get("pad_token_id") in (None, 0) and config.get("type_vocab_size") != 1
        return "bert" if plain else None
    return bare[0] if bare else None


def _has(dotted: list[str], part: str) -> bool:
    return any(part in name for name in dotted)
