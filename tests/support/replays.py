"""A decode step over and over on the same buffers: on a GPU the replays of its graph, elsewhere its kernels started again."""

from __future__ import annotations

import numpy as np
import torch

from engine.backends.gpu.runner import GpuRunner
from tests.support.attention_cases import DEVICE
from tests.support.engine_side import step

REPLAYS = 200 if DEVICE == "cuda" else 3


def check_layers(runner: GpuRunner, rows: int) -> None:
    """Through all layers, of `rows` sequences in mid-stream; every replay writes the same keys to the same places."""
    with runner.decode_step(rows) as again:
        found = []
        for _ in range(REPLAYS + 1):
            again()
            found.append([bits(part) for part in again.results])
    runner.check_after_replays()
    compare(found, f"layers, {rows} rows")


def check_next_token(runner: GpuRunner, rows: int) -> None:
    """From the token's embedding to what the next one is drawn from, of `rows` sequences, each with a past of its own."""
    slots = [runner.open() for _ in range(rows)]
    ids = np.arange(rows) % runner.stack.vocab
    for past, slot in enumerate(slots[1:], start=1):
        step(runner, [np.resize(ids, past)], [slot], [0])
    places = np.array(slots), np.arange(rows)
    with torch.no_grad(), runner._on_device():
        inputs = runner.vocabulary.inputs(ids, None, None)
        found = [[bits(part) for part in runner._next(inputs, *places)] for _ in range(REPLAYS + 1)]
    runner.check_after_replays()
    compare(found, f"next token, {rows} rows")


def compare(found: list[list[np.ndarray]], what: str) -> None:
    """Every replay's results [rows, ..] with the first ones'; numbers, and the same."""
    first, *others = found
    assert first and all(np.isfinite(part.view(np.float32)).all() for part in first), f"{what}: no numbers"
    for number, parts in enumerate(others, start=1):
        for part, same in zip(parts, first, strict=True):
            moved = int((part != same).sum())
            assert moved == 0, f"{what}: {moved} of {same.size} numbers have other bits in replay {number} of {REPLAYS}"


def bits(part: torch.Tensor) -> np.ndarray:
    array: np.ndarray = part.float().cpu().contiguous().numpy().copy().view(np.uint32)
    return array
