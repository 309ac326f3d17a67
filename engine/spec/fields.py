"""Frozen dataclasses ⇄ JSON values, strictly: an unknown, missing or ill-typed field is a collected problem."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Any, TypeVar

from engine.errors import Problem

T = TypeVar("T")
MAX_INTEGER = 2**31 - 1  # every count, size and token number of a model fits; larger is a damaged file


def to_json(value: Any) -> Any:
    """The JSON value of a dataclass tree; a member of a union of dataclasses carries its class name as `kind`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **fields} if _is_variant(type(value)) else fields
    if isinstance(value, tuple):
        return [to_json(item) for item in value]
    return value


def from_json(kind: type[T], value: Any, where: str, problems: list[Problem]) -> T | None:
    """Build `kind` from a JSON value; on trouble append to `problems` and return None."""
    result: T | None = _decode(kind, value, where, problems)
    return result


def variant(cls: type[T]) -> type[T]:
    """Mark a dataclass as a member of a tagged union, written with its class name as `kind`."""
    cls.__is_variant__ = True  # type: ignore[attr-defined]
    return cls


def _is_variant(cls: type) -> bool:
    return "__is_variant__" in cls.__dict__


def _decode(kind: Any, value: Any, where: str, problems: list[Problem]) -> Any:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return _decode_union(typing.get_args(kind), value, where, problems)
    if origin is typing.Literal:
        choices = typing.get_args(kind)
        if any(type(value) is type(choice) and value == choice for choice in choices):
            return value
        return _fail(where, " or ".join(repr(c) for c in choices), value, problems)
    if origin is tuple:
        item = typing.get_args(kind)[0]
        if not isinstance(value, list):
            return _fail(where, "a list", value, problems)
        return tuple(_decode(item, v, f"{where}[{i}]", problems) for i, v in enumerate(value))
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, value, where, problems)
    return _decode_scalar(kind, value, where, problems)


def _decode_scalar(kind: Any, value: Any, where: str, problems: list[Problem]) -> Any:
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > MAX_INTEGER:
            return _fail(where, f"an integer of at most {MAX_INTEGER}", value, problems)
        return value
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if abs(value) > 1e30 or math.isnan(value):
            return _fail(where, "a finite number", value, problems)
        return float(value)
    if kind is str and isinstance(value, str):
        return value
    return _fail(where, {bool: "true or false", int: "an integer", float: "a number"}.get(kind, "text"), value, problems)


def _decode_union(members: tuple[Any, ...], value: Any, where: str, problems: list[Problem]) -> Any:
    if value is None and type(None) in members:
        return None
    classes = {m.__name__: m for m in members if dataclasses.is_dataclass(m) and isinstance(m, type)}
    if not any(_is_variant(c) for c in classes.values()):
        (plain,) = [m for m in members if m is not type(None)]  # Optional[X]
        return _decode(plain, value, where, problems)
    name = value.get("kind") if isinstance(value, dict) else None
    if not isinstance(name, str) or name not in classes:
        return _fail(f"{where}.kind", " or ".join(sorted(classes)), name, problems)
    rest = {key: item for key, item in value.items() if key != "kind"}
    return _decode_dataclass(classes[name], rest, where, problems)


def _decode_dataclass(kind: Any, value: Any, where: str, problems: list[Problem]) -> Any:
    if not isinstance(value, dict):
        return _fail(where, "an object", value, problems)
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    before = len(problems)
    for key in value:
        if key not in fields:
            problems.append(Problem(f"{where}.{key}", "no such field", _shown(value[key])))
    decoded: dict[str, Any] = {}
    for name, field in fields.items():
        if name in value:
            decoded[name] = _decode(hints[name], value[name], f"{where}.{name}", problems)
        elif field.default is dataclasses.MISSING:
            problems.append(Problem(f"{where}.{name}", "a value", "nothing"))
    return kind(**decoded) if len(problems) == before else None


def _fail(where: str, expected: str, found: Any, problems: list[Problem]) -> None:
    problems.append(Problem(where, expected, _shown(found)))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
