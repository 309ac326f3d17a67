"""Tile sizes: one table for all devices until a device's own is measured; a choice depends on row counts and dtypes, never on heads."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf


@dataclass(frozen=True)
class Tile:
    """rows and keys (or columns) of a program's block, warps that work on it, stages of its load pipeline."""

    rows: int
    keys: int
    warps: int
    stages: int


Table = dict[int, tuple[tuple[float, Tile], ...]]  # by bytes of a number: (most rows, tile), rising

# float32 has no matrix instructions at full precision and so small tiles.
CONSTANTS: Table = {
    2: ((16, Tile(16, 64, 4, 3)), (64, Tile(64, 64, 4, 3)), (inf, Tile(128, 64, 8, 3))),
    4: ((16, Tile(16, 32, 4, 2)), (inf, Tile(32, 32, 4, 2))),
}
ROWS: Table = {
    2: ((16, Tile(16, 64, 4, 2)), (inf, Tile(64, 64, 4, 2))),
    4: ((16, Tile(16, 32, 4, 2)), (inf, Tile(32, 32, 4, 2))),
}
RING: Table = {2: ((inf, Tile(1, 64, 4, 3)),), 4: ((inf, Tile(1, 64, 4, 3)),)}


def choose(table: Table, rows: int, bytes_per_number: int) -> Tile:
    """The first tile of the table for at least this many rows."""
    return next(tile for most, tile in table[bytes_per_number] if rows <= most)


def splits(rows: int, persistent: int, tile: Tile) -> int:
    """Into how many parts the persistent vectors are cut, so that few rows still fill a GPU: 32, falling to 1 as row tiles grow."""
    if not persistent:
        return 0
    row_tiles = -(-rows // tile.rows)
    return max(1, min(32 // row_tiles, -(-persistent // tile.keys)))
