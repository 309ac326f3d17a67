"""Tiles measured on a device: one JSON file per device in the user's cache, written by tune.py, read when a runner is built."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, replace
from math import inf
from pathlib import Path
from typing import Any

from engine_kernels.errors import KernelError
from engine_kernels.triton_ops.tiles import Table, Tile, Tiles, for_architecture

TUNED = ("constants", "rows", "ring", "bidirectional", "project")


def file_of(device: str) -> Path:
    """Where a device's measured tiles stand: $HEADCOUNT_CACHE, or headcount in $XDG_CACHE_HOME or ~/.cache."""
    folder = os.environ.get("HEADCOUNT_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headcount"
    return Path(folder) / f"tiles-{re.sub(r'[^a-z0-9]+', '-', device.lower())}.json"


def read(device: str, architecture: str) -> Tiles:
    """The architecture's tables, with those of the device's file in place; raises KernelError for a file that is not one."""
    tiles, path = for_architecture(architecture), file_of(device)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return tiles
    try:
        tables: dict[str, Any] = {name: _table(sizes) for name, sizes in json.loads(text).items()}
        return replace(tiles, **tables)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise KernelError(str(path), f"tables of tiles for {', '.join(TUNED)}; remove the file, or measure again", str(error)) from None


def write(device: str, tables: dict[str, Table]) -> Path:
    """Replace the device's file, whole or not at all."""
    path = file_of(device)
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {name: {size: [[_plain(most), asdict(tile)] for most, tile in rows] for size, rows in t.items()} for name, t in tables.items()}
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)
    return path


def _plain(most: float) -> int | None:
    return None if most == inf else int(most)


def _table(sizes: dict[str, Any]) -> Table:
    """{"2": [[16, {rows, keys, warps, stages}], …, [null, {…}]], "4": …}"""
    table = {int(size): tuple((inf if most is None else most, _tile(tile)) for most, tile in rows) for size, rows in sizes.items()}
    if sorted(table) != [2, 4] or any(not rows or rows[-1][0] != inf for rows in table.values()):
        raise ValueError("a table must have tiles for numbers of 2 and 4 bytes, the last of each for any number of rows")
    return table


def _tile(values: dict[str, int]) -> Tile:
    tile = Tile(**values)
    if any(type(value) is not int or value < 1 or value & (value - 1) for value in (tile.rows, tile.keys, tile.warps)) or tile.stages < 1:
        raise ValueError(f"sizes of a tile must be powers of two: {values}")
    return tile
