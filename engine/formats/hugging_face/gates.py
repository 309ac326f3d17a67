"""Trained gates that stand in a file beside the model's tensors, of two programs that prune heads.

Voita et al. (arXiv 1905.09418): log_a per head; without noise a head is multiplied by clip(1.2 · sigmoid(log_a) - 0.1, 0, 1), the hard
concrete distribution of arXiv 1712.01312 with its limits -0.1 and 1.1. Differentiable subset pruning (arXiv 2108.04657): w [layers, heads],
whose K largest are kept; K stands in no file, the choice in mask<K>.pt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.errors import Problem
from engine.formats.base import SourceTensors
from engine.formats.hugging_face.architecture import Kept

LOG_A = re.compile(r"(?:^|\.)(?:layer|h)\.(\d+)\..*log_a$")
LOW, HIGH = -0.1, 1.1


@dataclass(frozen=True)
class Gates:
    """kept, scales: of each layer, without the heads whose gates are closed; scales None where the file has no gates that say it.

    undecided: the problem of gates that choose heads by a number which is not in the file.
    """

    kept: Kept
    scales: tuple[tuple[float, ...], ...] | None = None
    undecided: Problem | None = None


def read_gates(source: SourceTensors, kept: Kept, source_heads: Sequence[int], notes: list[str]) -> Gates:
    """What the gates in the file make of its heads; problems of theirs are collected in `source`."""
    subset = [name for name in source.names() if name.rpartition(".")[2] == "w"]
    log_a = {int(match[1]): name for name in source.names() if (match := LOG_A.search(name))}
    if log_a:
        for name in subset:
            source.ignore(name)
            notes.append(f"{name} not read: heads are multiplied by their gates log_a")
        return _hard_concrete(source, kept, source_heads, log_a, notes)
    undecided = None
    for name in subset:
        source.take(name, (len(kept), max(source_heads, default=0)))
        notes.append(f"{name} not read: gate weights, which choose heads only together with their number")
        expected = "heads=, such as the mask<K>.pt beside the file: its gates do not say how many heads they keep; heads={} keeps all"
        undecided = Problem(f"gate weights {name}", expected, "no heads=")
    return Gates(kept, None, undecided)


def _hard_concrete(source: SourceTensors, there: Kept, source_heads: Sequence[int], log_a: dict[int, str], notes: list[str]) -> Gates:
    """there: heads of the file."""
    kept, scales = [], []
    for layer, (numbers, count) in enumerate(zip(there, source_heads, strict=True)):
        name = log_a.get(layer)
        gates = np.ones(count) if name is None else _open(source, name, numbers, count)
        left = [(head, float(gates[head])) for head in numbers if gates[head]]
        kept.append(tuple(head for head, _ in left))
        scales.append(tuple(scale for _, scale in left))
    notes.append(f"gates log_a applied: {sum(map(len, kept))} of {sum(map(len, there))} heads are open, each multiplied by its gate")
    return Gates(tuple(kept), tuple(scales))


def _open(source: SourceTensors, name: str, numbers: tuple[int, ...], source_heads: int) -> np.ndarray:
    """The factor of each head of the source, of gates for all of them or for those left in the file."""
    shape = source.any_shape(name)
    left = len(numbers) != source_heads and int(np.prod(shape)) == len(numbers)
    expected = shape if left or int(np.prod(shape)) == source_heads else (1, source_heads, 1, 1)
    given = np.asarray(source.take(name, expected), np.float64).reshape(-1)
    with np.errstate(over="ignore"):
        factors = np.clip((HIGH - LOW) / (1 + np.exp(-given)) + LOW, 0, 1)
    if not left:
        return factors
    every = np.zeros(source_heads)
    every[list(numbers)] = factors
    return every
