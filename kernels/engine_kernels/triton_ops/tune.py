"""`python -m engine_kernels.triton_ops.tune` times tiles on this machine's GPU and keeps the best; nothing tunes itself while a model runs.

Only 16-bit numbers are tuned. Each table keeps three classes of row counts; a tile that does not fit the GPU is passed over.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import numpy as np
import torch

from engine_kernels.gpu_ops import Norm, Sequences
from engine_kernels.ops import AttentionTables, Visibility
from engine_kernels.triton_ops import device_tiles
from engine_kernels.triton_ops.attention import attend_constants, attend_ring, attend_rows
from engine_kernels.triton_ops.bidirectional import attend_bidirectional
from engine_kernels.triton_ops.launch import Launcher, architecture
from engine_kernels.triton_ops.projections import project_heads
from engine_kernels.triton_ops.tiles import Table, Tile, for_architecture

CANDIDATES: dict[str, tuple[Tile, ...]] = {
    "constants": tuple(Tile(r, k, w, s) for r, w in ((16, 4), (64, 4), (128, 4), (128, 8)) for k in (64, 128) for s in (2, 3)),
    "rows": tuple(Tile(r, k, w, 2) for r, w in ((16, 4), (32, 4), (64, 4), (64, 8), (128, 8)) for k in (32, 64)),
    "ring": tuple(Tile(1, k, w, s) for k in (32, 64, 128) for w in (2, 4) for s in (2, 3)),
    "bidirectional": tuple(Tile(r, k, w, s) for r, w in ((16, 4), (64, 4), (128, 8)) for k in (32, 64, 128) for s in (2, 3)),
    "project": tuple(Tile(r, k, w, s) for r, k, w in ((16, 32, 4), (64, 32, 4), (64, 64, 4), (128, 64, 8)) for s in (2, 3, 4)),
}
CLASSES = ((16, 8), (64, 64), (inf, 4096))  # (most rows, how many are timed)


@dataclass(frozen=True)
class Sizes:
    """The layer that is timed."""

    heads: int = 4
    head_dim: int = 64
    persistent: int = 2048
    window: int = 193
    hidden: int = 512


def tune(
    device: torch.device, sizes: Sizes, candidates: dict[str, tuple[Tile, ...]], classes: Sequence[tuple[float, int]]
) -> dict[str, Table]:
    """For each kernel and class of rows the fastest of its candidates; the rest of the architecture's table stays."""
    name = architecture(device)
    tables = {}
    for kernel, tiles in candidates.items():
        known: Table = getattr(for_architecture(name), kernel)
        best = tuple((most, min(tiles, key=lambda tile: _seconds(device, kernel, tile, rows, sizes))) for most, rows in classes)
        tables[kernel] = {**known, 2: best}
    return tables


def _seconds(device: torch.device, kernel: str, tile: Tile, rows: int, sizes: Sizes) -> float:
    """Of one call with this tile; infinite where the tile does not fit."""
    launch = Launcher(architecture(device))
    only: dict[str, Any] = {kernel: {2: ((inf, tile),), 4: ((inf, tile),)}}
    launch.tiles = replace(launch.tiles, **only)
    work = _work(launch, device, kernel, rows, sizes)
    try:
        work()
        samples = [_once(device, work) for _ in range(9 if device.type == "cuda" else 1)]
    except Exception as error:  # triton's errors for resources differ between its versions
        print(f"{kernel}, {rows} rows, {tile}: passed over, {type(error).__name__}")
        return inf
    return float(np.median(samples))


def _once(device: torch.device, work: Callable[[], object]) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _work(launch: Launcher, device: torch.device, kernel: str, rows: int, s: Sizes) -> Callable[[], object]:
    def zeros(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    query, visibility = zeros(rows, s.heads, s.head_dim), Visibility(s.window, 0, s.window, 0, True)
    persistent = zeros(s.heads, s.persistent, s.head_dim)
    bias = zeros(s.heads, s.head_dim, dtype=torch.float32)
    tables = AttentionTables(zeros(s.heads, s.window, s.head_dim), bias, bias, persistent, persistent, None, 0)
    if kernel == "constants":
        return lambda: attend_constants(launch, query, tables, visibility)
    if kernel == "project":
        weight, x = zeros(3, s.heads, s.head_dim, s.hidden), zeros(rows, s.hidden, dtype=torch.float32)
        order, new = torch.arange(rows, device=device), (query[:, :, None], torch.empty_like(query)[:, :, None])
        norm = Norm(x[0], x[0], 1e-5)
        return lambda: project_heads(launch, x, weight, None, norm, new, order, order)
    if kernel == "bidirectional":
        one, new = torch.zeros(1, dtype=torch.int64, device=device), (query[:, :, None], query[:, :, None])
        sequences, lengths = Sequences(one, one + rows, one, one, one), np.array([rows])
        return lambda: attend_bidirectional(launch, query, new, sequences, lengths, torch.empty_like(query))
    constants = attend_constants(launch, query, tables, visibility)
    count, length = (rows, 1) if kernel == "ring" else (1, rows)
    ring = zeros(count, s.heads, s.window, s.head_dim)
    order = torch.arange(count, device=device)
    sequences = Sequences(order * length, torch.full_like(order, length), order, order, torch.full_like(order, 10 * s.window))
    if kernel == "ring":
        return lambda: attend_ring(launch, query, (ring, ring), constants, sequences, tables, visibility, query)
    out, lengths = torch.empty_like(query), np.full(count, length)
    return lambda: attend_rows(launch, query, (ring, ring), (query, query), constants, sequences, lengths, tables, visibility, out)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m engine_kernels.triton_ops.tune", description=__doc__)
    for name, value in Sizes().__dict__.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    sizes = Sizes(**vars(parser.parse_args()))
    if not torch.cuda.is_available():
        raise SystemExit("there is no GPU that PyTorch sees: tiles are measured on the device that will use them")
    device = torch.device("cuda")
    print(device_tiles.write(torch.cuda.get_device_name(device), tune(device, sizes, CANDIDATES, CLASSES)))


if __name__ == "__main__":
    main()
