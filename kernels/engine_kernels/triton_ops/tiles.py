"""Tile sizes of each kernel by architecture; a choice depends on row counts and dtypes, never on heads.

The tables hold what ahead-of-time compilation showed to fit in registers; no GPU has timed them yet.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf


@dataclass(frozen=True)
class Tile:
    """rows and keys (or columns) of a program's block, warps that work on it, stages of its load pipeline."""

    rows: int
    keys: int
    warps: int
    stages: int


Table = dict[int, tuple[tuple[float, Tile], ...]]  # by bytes of a number: (most rows, tile), rising


@dataclass(frozen=True)
class Tiles:
    """One architecture's tables, by kernel."""

    constants: Table
    rows: Table
    ring: Table
    bidirectional: Table
    project: Table
    copy: Table
    norm: Table
    descriptors: bool = False  # the architecture has a tensor memory unit, which loads whole blocks by their descriptors


# float32 has no matrix instructions at full precision and so small tiles.
CONSTANTS: Table = {
    2: ((16, Tile(16, 64, 4, 3)), (64, Tile(64, 64, 4, 3)), (inf, Tile(128, 64, 8, 3))),
    4: ((16, Tile(16, 32, 4, 2)), (inf, Tile(32, 32, 4, 2))),
}
ROWS: Table = {
    2: ((16, Tile(16, 64, 4, 2)), (inf, Tile(64, 32, 4, 2))),
    4: ((16, Tile(16, 32, 4, 2)), (inf, Tile(32, 16, 4, 2))),
}
WHOLE: Table = {
    2: ((16, Tile(16, 32, 4, 2)), (256, Tile(64, 64, 4, 3)), (inf, Tile(128, 64, 8, 3))),
    4: ((16, Tile(16, 32, 4, 2)), (inf, Tile(32, 16, 4, 2))),
}
RING: Table = {2: ((inf, Tile(1, 64, 4, 3)),), 4: ((inf, Tile(1, 64, 4, 3)),)}

PROJECT: Table = {
    2: ((16, Tile(16, 32, 4, 4)), (64, Tile(64, 32, 4, 3)), (inf, Tile(128, 64, 8, 3))),
    4: ((16, Tile(16, 32, 4, 2)), (inf, Tile(32, 32, 4, 2))),
}
COPY: Table = dict.fromkeys((2, 4), ((16, Tile(1, 1, 1, 1)), (inf, Tile(16, 1, 4, 1))))
NORM: Table = dict.fromkeys((2, 4), ((64, Tile(1, 512, 4, 1)), (inf, Tile(4, 512, 4, 1))))

GENERAL = Tiles(CONSTANTS, ROWS, RING, WHOLE, PROJECT, COPY, NORM)
HOPPER = replace(GENERAL, rows={**ROWS, 2: ((16, Tile(16, 64, 4, 2)), (inf, Tile(64, 64, 4, 2)))}, descriptors=True)
# 64 KiB of shared memory: two stages where the others have three.
AMD = replace(GENERAL, project={**PROJECT, 2: ((16, Tile(16, 32, 4, 2)), (64, Tile(64, 32, 4, 2)), (inf, Tile(128, 64, 8, 2)))})
# The interpreter pays by the operation, whatever its size.
LARGE: Table = dict.fromkeys((2, 4), ((16, Tile(16, 128, 4, 1)), (64, Tile(64, 128, 4, 1)), (inf, Tile(128, 128, 4, 1))))
INTERPRETER = Tiles(
    constants=LARGE,
    rows=LARGE,
    ring=RING,
    bidirectional=LARGE,
    project=LARGE,
    copy=dict.fromkeys((2, 4), ((inf, Tile(128, 1, 4, 1)),)),
    norm=dict.fromkeys((2, 4), ((inf, Tile(128, 512, 4, 1)),)),
)
BY_ARCHITECTURE = {"sm_90": HOPPER, "interpreter": INTERPRETER}


def for_architecture(name: str) -> Tiles:
    """The tables of sm_80, sm_90, gfx942, …, or of the interpreter."""
    return BY_ARCHITECTURE.get(name, AMD if name.startswith("gfx") else GENERAL)


def choose(table: Table, rows: int, bytes_per_number: int) -> Tile:
    """The first tile of the table for at least this many rows."""
    return next(tile for most, tile in table[bytes_per_number] if rows <= most)


def splits(rows: int, persistent: int, tile: Tile) -> int:
    """Into how many parts the persistent vectors are cut, so that few rows still fill a GPU: 32, falling to 1 as row tiles grow."""
    if not persistent:
        return 0
    row_tiles = -(-rows // tile.rows)
    return max(1, min(32 // row_tiles, -(-persistent // tile.keys)))


PARTS = 32  # the most parts a window is cut into
PROGRAMS = 256  # about what fills a GPU
KEYS_OF_A_PART = 256  # fewer do not pay for a merge


def window_parts(programs: int, reach: int) -> int:
    """Into how many parts the keys of a ring are cut, where `programs` sequences × heads alone do not fill a GPU; 1 = not at all."""
    return max(1, min(PROGRAMS // programs, reach // KEYS_OF_A_PART, PARTS))
