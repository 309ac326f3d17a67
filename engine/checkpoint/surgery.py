"""(Checkpoint, kept, scales) → Checkpoint: heads cut out by slicing, every other number left as it is."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from engine.checkpoint import Checkpoint, Weights
from engine.errors import InputError, Problem, Unsupported
from engine.spec import AttentionSpec

ROWS = ("query", "key", "value", "relative")  # [heads · head_dim, hidden], and biases [heads · head_dim]
PER_HEAD = ("content_bias", "position_bias", "persistent_keys", "persistent_values")  # [heads, …]


def prune(checkpoint: Checkpoint, kept: Sequence[Sequence[int]], scales: Sequence[Sequence[float]] | None = None) -> Checkpoint:
    """The checkpoint with only the heads `kept` of each layer, by the numbers they have in the source model; none is legal.

    scales: a factor on each kept head's output, multiplied into what the checkpoint has; factors of 1 add nothing.
    The result's weights are cut anew each time one is asked for, so that a pruned model does not hold a copy of what it came from.
    Raises InputError for heads the checkpoint does not hold, Unsupported for grouped key/value heads.
    """
    attentions = [layer.attention for layer in checkpoint.spec.layers]
    _refuse_grouped(attentions)
    choice = _checked(attentions, kept, scales)
    cuts: dict[str, Cut] = {}
    layers = []
    for index, (layer, (heads, factors)) in enumerate(zip(checkpoint.spec.layers, choice, strict=True)):
        attention = layer.attention
        positions = [attention.kept.index(head) for head in heads]
        scaled = attention.scaled or any(factor != 1 for factor in factors)
        prefix = f"layers.{index}.attention."
        ours = [name.removeprefix(prefix) for name in checkpoint.weights if name.startswith(prefix)]
        cuts |= {prefix + name: cut for name, cut in _cuts(attention, prefix, ours, positions, factors if scaled else None)}
        spans = None if attention.spans is None else tuple(attention.spans[p] for p in positions)
        attention = replace(attention, kept=heads, kv_of=tuple(range(len(heads))), spans=spans, scaled=scaled)
        layers.append(replace(layer, attention=attention))
    spec = replace(checkpoint.spec, layers=tuple(layers))
    provenance = {**checkpoint.provenance, "kept": [list(heads) for heads, _ in choice]}
    return replace(checkpoint, spec=spec, weights=Pruned(checkpoint.weights, list(spec.tensors()), cuts), provenance=provenance)


Cut = Callable[[Weights], np.ndarray]  # a tensor, from the tensors it is cut out of


class Pruned(Mapping[str, np.ndarray]):
    """Tensors by name, some of them cut out of `whole` when they are asked for."""

    def __init__(self, whole: Weights, names: Sequence[str], cuts: Mapping[str, Cut]) -> None:
        self.whole = whole
        self._cuts: dict[str, Cut | None] = {name: cuts.get(name) for name in names}

    def __getitem__(self, name: str) -> np.ndarray:
        cut = self._cuts[name]
        return self.whole[name] if cut is None else cut(self.whole)

    def __iter__(self) -> Iterator[str]:
        return iter(self._cuts)

    def __len__(self) -> int:
        return len(self._cuts)


def mask(checkpoint: Checkpoint, kept: Sequence[Sequence[int]], scales: Sequence[Sequence[float]] | None = None) -> Checkpoint:
    """The checkpoint with every head still computed, the outputs of those not in `kept` multiplied by 0; arguments and errors as prune.

    What a gated or masked source computes, and the yardstick for prune: both give the same answers.
    """
    attentions = [layer.attention for layer in checkpoint.spec.layers]
    choice = _checked(attentions, kept, scales)
    factors = [dict(zip(heads, row, strict=True)) for heads, row in choice]
    every = [[factor.get(head, 0.0) for head in a.kept] for a, factor in zip(attentions, factors, strict=True)]
    return prune(checkpoint, [a.kept for a in attentions], every)


def _cuts(
    a: AttentionSpec, prefix: str, ours: Sequence[str], positions: list[int], factors: tuple[float, ...] | None
) -> Iterator[tuple[str, Cut]]:
    """How each tensor of one attention, by its name in the layer, is cut for the heads at `positions`; those not named go."""

    def rows(name: str) -> Cut:  # [heads · head_dim, …]
        def cut(whole: Weights) -> np.ndarray:
            array = whole[prefix + name]
            return _take(array.reshape(a.heads, a.head_dim, *array.shape[1:]), positions, 0).reshape(-1, *array.shape[1:])

        return cut

    def columns(whole: Weights) -> np.ndarray:  # [hidden, heads · head_dim]
        output = whole[prefix + "output"]
        return _take(output.reshape(-1, a.heads, a.head_dim), positions, 1).reshape(output.shape[0], -1)

    if "output_bias" in ours:
        yield "output_bias", lambda whole: whole[prefix + "output_bias"]
    if not positions:
        return
    for name in ROWS:
        yield from ((part, rows(part)) for part in (name, f"{name}_bias") if part in ours)
    for name in PER_HEAD:
        if name in ours:
            yield name, lambda whole, name=name: _take(whole[prefix + name], positions, 0)  # type: ignore[misc]
    if factors is not None:
        has_scale = "head_scale" in ours
        yield "head_scale", lambda whole: _scale(whole[prefix + "head_scale"] if has_scale else None, positions, factors)
    yield "output", columns


def _take(array: np.ndarray, positions: list[int], axis: int) -> np.ndarray:
    """Entries of one axis: the array itself when all are taken, else a copy."""
    return array if positions == list(range(array.shape[axis])) else np.take(array, positions, axis)


def _scale(existing: np.ndarray | None, positions: list[int], factors: tuple[float, ...]) -> np.ndarray:
    """existing · factors, in float32; existing numbers unchanged, whatever their type, where every factor is 1."""
    if existing is None:
        return np.array(factors, np.float32)
    if all(factor == 1 for factor in factors):
        return _take(existing, positions, 0)
    with np.errstate(over="ignore"):  # infinite weights are refused at load, with their name
        return np.asarray(existing, np.float32)[positions] * np.array(factors, np.float32)


def _refuse_grouped(attentions: Sequence[AttentionSpec]) -> None:
    problems = [
        Problem(f"layers.{index}.attention.kv_of", "a key/value head for each head", str(list(a.kv_of)))
        for index, a in enumerate(attentions)
        if a.kv_of != tuple(range(a.heads))
    ]
    if problems:
        raise Unsupported(problems, hint="grouped key/value heads cannot be pruned by this version")


Choice = tuple[tuple[int, ...], tuple[float, ...]]  # heads ascending, and a factor for each


def _checked(attentions: Sequence[AttentionSpec], kept: Sequence[Sequence[int]], scales: Sequence[Sequence[float]] | None) -> list[Choice]:
    """Heads and factors per layer; raises InputError with everything that is wrong with them."""
    layers = len(attentions)
    for name, value in (("kept", kept), ("scales", scales)):
        if value is not None and len(value) != layers:
            raise InputError(Problem(name, f"one list for each of {layers} layers", f"{len(value)}"))
    problems: list[Problem] = []
    choice = []
    for index, a in enumerate(attentions):
        heads = _heads(f"layers.{index}", a, kept[index], problems)
        factors = [1.0] * len(heads) if scales is None else _factors(f"layers.{index}", scales[index], len(kept[index]), problems)
        pairs = sorted(zip(heads, factors, strict=False))
        choice.append((tuple(head for head, _ in pairs), tuple(factor for _, factor in pairs)))
    if problems:
        raise InputError(problems)
    return choice


def _heads(where: str, a: AttentionSpec, given: Sequence[int], problems: list[Problem]) -> list[int]:
    heads = []
    for head in given:
        number = _integer(head)
        if number is None or number not in a.kept:
            problems.append(Problem(where, f"heads among {list(a.kept)}", repr(head)))
        elif number in heads:
            problems.append(Problem(where, "each head once", f"{number} twice"))
        else:
            heads.append(number)
    return heads


def _integer(value: Any) -> int | None:
    try:
        return None if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        return None


def _factors(where: str, given: Sequence[float], count: int, problems: list[Problem]) -> list[float]:
    factors = [float(factor) for factor in given]
    if len(factors) != count:
        problems.append(Problem(where, f"a scale for each of {count} heads", str(len(factors))))
    largest = float(np.finfo(np.float32).max)
    problems.extend(Problem(where, "a finite scale", str(f)) for f in factors if not math.isfinite(f) or abs(f) > largest)
    return factors
