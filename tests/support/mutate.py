"""Seeded damage to files: bytes flipped, cut, repeated; zip members rewritten in a sound container; fields of JSON edited."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

BAD_BYTES = (
    b"\x00",
    b"\xff",
    b"\x7f",
    b"\x80\x3f",
    b"\x00\x00\xc0\x7f",
    b"\x00\x00\x80\x7f",
    b"\xff\xff\xff\x7f",
)  # NaN, infinity among them


def spoil(data: bytes, random: Random) -> bytes:
    """Bytes with one to three damages; never the same bytes where there are any."""
    spoiled = data
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        spoiled = random.choice(DAMAGES)(spoiled, random) if spoiled else b"\x00"
    return spoiled if spoiled != data else data + b"\x00"


def _flip(data: bytes, random: Random) -> bytes:
    result = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8))):
        result[random.randrange(len(result))] ^= 1 << random.randrange(8)
    return bytes(result)


def _overwrite(data: bytes, random: Random) -> bytes:
    at = random.randrange(len(data)) // 4 * 4
    value = random.choice(BAD_BYTES) * random.choice((1, 1, 4, 64))
    return data[:at] + value[: len(data) - at] + data[at + len(value) :]


def _truncate(data: bytes, random: Random) -> bytes:
    return data[: random.randrange(len(data))]


def _duplicate(data: bytes, random: Random) -> bytes:
    start, stop = _span(data, random)
    return data[:stop] + data[start:stop] + data[stop:]


def _remove(data: bytes, random: Random) -> bytes:
    start, stop = _span(data, random)
    return data[:start] + data[stop:]


def _move(data: bytes, random: Random) -> bytes:
    """A range copied over another place of the same length."""
    start, stop = _span(data, random)
    at = random.randrange(len(data) - (stop - start) + 1)
    return data[:at] + data[start:stop] + data[at + stop - start :]


def _span(data: bytes, random: Random) -> tuple[int, int]:
    start = random.randrange(len(data))
    return start, min(len(data), start + random.choice((1, 4, 64, 1000)))


DAMAGES: tuple[Callable[[bytes, Random], bytes], ...] = (
    _flip,
    _flip,
    _flip,
    _flip,
    _overwrite,
    _overwrite,
    _truncate,
    _duplicate,
    _remove,
    _move,
)
SAME_SIZE = (_flip, _overwrite, _move)


def spoil_member(data: bytes, random: Random) -> bytes:
    """A zip file in which one member is damaged (one in three times the pickle) and the container, its checksums included, is sound."""
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        members = {name: old.read(name) for name in old.namelist()}
    pickle = next(name for name in members if name.endswith("/data.pkl"))
    chosen = pickle if random.random() < 1 / 3 else random.choice([name for name in members if members[name]])
    damage = random.choice(SAME_SIZE) if random.random() < 0.8 else spoil  # numbers, or the length of what holds them
    members[chosen] = damage(members[chosen], random)
    new = io.BytesIO()
    with zipfile.ZipFile(new, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return new.getvalue()


def spoil_header(data: bytes, random: Random) -> bytes:
    """A safetensors file whose header has one field edited, and whose length says so."""
    length = int.from_bytes(data[:8], "little")
    header = edit_json(json.loads(data[8 : 8 + length]), random)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


SCALARS: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 7, 2**31 - 1, 2**31, 2**63, -(2**63), 10**400, 0.5, -0.0, 1e308, float("nan"), float("-inf")),
    *("", "x", "0", "none", "\0", "\u00e9\u6587\U0001f600", "\ud800", "a" * 100_000, "../../etc/passwd", "float32"),
)
DEEP = "\ufdd0"  # stands for a value nested deeper than any parser goes
FIELD_EDITS = ("scalar", "scalar", "scalar", "near", "near", "delete", "rename", "nest", "empty", "swap", "repeat", "deep", "twice")


def edit_json(value: Any, random: Random) -> bytes:
    """The text of a JSON value with one field changed: removed, renamed, retyped, huge, negative, nested, repeated."""
    value = json.loads(json.dumps(value))
    places = list(_places(value))
    holder, key = random.choice(places)
    edit = random.choice(FIELD_EDITS)
    old = holder[key]
    if edit == "delete":
        del holder[key]
    elif edit == "rename" and isinstance(holder, dict):
        holder[key + random.choice("xX_ \0\u00e9")] = holder.pop(key)
    elif edit == "twice" and isinstance(holder, dict):
        holder["\ufdd1"] = old
    else:
        holder[key] = _changed(old, edit, places, random)
    text = json.dumps(value)
    if edit == "deep":
        text = text.replace(json.dumps(DEEP), "[" * 50_000 + "]" * 50_000)
    if edit == "twice" and isinstance(key, str):
        text = text.replace(json.dumps("\ufdd1"), json.dumps(key))
    return text.encode("utf-8")


def _changed(old: Any, edit: str, places: list[tuple[Any, Any]], random: Random) -> Any:
    if edit == "near" and isinstance(old, (int, float)) and not isinstance(old, bool):
        return random.choice((old + 1, old - 1, -old, old * 2, old * 1000, old / 2, float(old), str(old)))
    if edit == "near" and isinstance(old, str):
        return random.choice((old + "x", old[:-1], old.upper(), old * 2, [old]))
    if edit == "nest":
        return random.choice(([old], {"x": old}, [[old, old]], {"kind": "Table", "rows": 3}))
    if edit == "empty":
        return random.choice(([], {}, ""))
    if edit == "swap":
        holder, key = random.choice(places)
        return json.loads(json.dumps(holder[key]))
    if edit == "repeat" and isinstance(old, list):
        return old + old
    return DEEP if edit == "deep" else random.choice(SCALARS)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(holder, key) of every field and item."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])
