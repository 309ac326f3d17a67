"""JSON of files we did not write, read strictly: one clear error instead of a guess, whatever the bytes are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from engine.errors import CheckpointError, EngineError, Problem

MAX_BYTES = 64 << 20  # no configuration comes near it; larger is another kind of file
MAX_DEPTH = 64


class _Refused(ValueError):
    """Valid for Python's json module, not for us."""


def read_bytes(path: Path, error: type[EngineError] = CheckpointError) -> bytes:
    """The bytes of a regular file; raises `error` when there is none, it cannot be read or is longer than MAX_BYTES."""
    try:
        if not path.is_file():  # a pipe or a device could block for ever
            raise error(Problem(str(path), "a file", "a directory" if path.is_dir() else "nothing"))
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except EngineError:
        raise  # InputError is a ValueError too
    except (OSError, ValueError) as bad:  # ValueError: a path with a NUL byte
        raise error(Problem(repr(str(path)), "a readable file", str(bad))) from bad
    if len(data) > MAX_BYTES:
        raise error(Problem(str(path), f"at most {MAX_BYTES} bytes", "more"))
    return data


def read_json(path: Path) -> Any:
    """The value in a JSON file; raises CheckpointError for anything that is not strict JSON in UTF-8."""
    return parse_json(read_bytes(path), str(path))


def parse_json(data: bytes, where: str, error: type[EngineError] = CheckpointError) -> Any:
    """The value of JSON text; raises `error` for text not in UTF-8, duplicate keys, NaN, lone surrogates and values nested too deep."""
    try:
        text = data.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        _plain(value, 0)
    except UnicodeDecodeError as bad:
        raise error(Problem(where, "text in UTF-8", f"byte 0x{data[bad.start]:02x} at {bad.start}")) from None
    except RecursionError:
        raise error(Problem(where, f"JSON nested at most {MAX_DEPTH} deep", "more")) from None
    except ValueError as bad:  # JSONDecodeError, _Refused, and Python's own limit on the digits of an integer
        raise error(Problem(where, "JSON", "an empty file" if not data.strip() else str(bad))) from None
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _Refused(f"key {repeated!r} twice in one object")
    return result


def _no_constant(name: str) -> NoReturn:
    raise _Refused(f"{name}, which JSON does not have")


def _plain(value: Any, depth: int) -> None:
    """Refuse what would break later: deep nesting, and text that cannot be printed or written as UTF-8."""
    if depth > MAX_DEPTH:
        raise _Refused(f"a value nested more than {MAX_DEPTH} deep")
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            raise _Refused(f"half a character in {value[:40]!r}")
    elif isinstance(value, list):
        for item in value:
            _plain(item, depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            _plain(key, depth + 1)
            _plain(item, depth + 1)
