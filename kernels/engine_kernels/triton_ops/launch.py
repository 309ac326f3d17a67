"""The only place that starts a kernel: what runs on a device runs in the interpreter and in ahead-of-time compilation by the same call."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from engine_kernels.triton_ops import device_tiles
from engine_kernels.triton_ops.tiles import Tile, for_architecture


class Launcher:
    """Starts kernels with the tiles of one architecture and counts them by name."""

    def __init__(self, architecture: str) -> None:
        self.architecture = architecture
        self.tiles = for_architecture(architecture)
        self.calls: Counter[str] = Counter()

    def __call__(self, kernel: Any, grid: tuple[int, ...], tile: Tile, *arguments: Any, **constants: Any) -> None:
        """kernel[grid] with positional arguments and compile-time constants; an empty grid starts nothing."""
        if not all(grid):
            return
        self.calls[kernel.__name__] += 1
        self.start(kernel, grid, tile, *arguments, **constants)

    def start(self, kernel: Any, grid: tuple[int, ...], tile: Tile, *arguments: Any, **constants: Any) -> None:
        """What a call does once counted; ahead-of-time compilation puts another in its place."""
        kernel[grid](*arguments, **constants, num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=True)


def launcher(device: torch.device) -> Launcher:
    """A launcher for a device, with its own tiles where they were measured; raises KernelError for a file of them that cannot be used."""
    launch = Launcher(architecture(device))
    if device.type != "cpu":
        launch.tiles = device_tiles.read(torch.cuda.get_device_name(device), launch.architecture)
    return launch


def architecture(device: torch.device) -> str:
    """sm_90, gfx942, …; `interpreter` for the tensors of a CPU."""
    if device.type == "cpu":
        return "interpreter"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return str(properties.gcnArchName).split(":")[0]
    return f"sm_{properties.major}{properties.minor}"
