"""The only place that starts a kernel: what runs on a device runs in the interpreter and in ahead-of-time compilation by the same call."""

from __future__ import annotations

from collections import Counter
from typing import Any

from engine_kernels.triton_ops.tiles import Tile


class Launcher:
    """Starts kernels with a tile's warps and stages and counts them by name."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def __call__(self, kernel: Any, grid: tuple[int, ...], tile: Tile, *arguments: Any, **constants: Any) -> None:
        """kernel[grid] with positional arguments and compile-time constants; an empty grid starts nothing."""
        if not all(grid):
            return
        self.calls[kernel.__name__] += 1
        kernel[grid](*arguments, **constants, num_warps=tile.warps, num_stages=tile.stages)
