"""Scores → an order of heads → the heads to keep within a budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.errors import InputError, Problem
from engine.spec import ModelSpec
from engine.spec.cost import model_cost

Head = tuple[int, int]  # layer, head number in the source model
Kept = tuple[tuple[int, ...], ...]
COMBINATIONS = ("md", "sd")


def order_of(scores: np.ndarray, spec: ModelSpec) -> list[Head]:
    """The model's heads, lowest score first; equal scores in the order of layer and head.

    Raises InputError where `scores` [layers, source heads] do not fit the model or have no finite score for a head it has.
    """
    attentions = [layer.attention for layer in spec.layers]
    shape = (len(attentions), max(a.source_heads for a in attentions))
    if scores.shape != shape:
        raise InputError(Problem("scores", f"an array of {shape[0]} layers × {shape[1]} heads", str(list(scores.shape))))
    heads = [(layer, head) for layer, a in enumerate(attentions) for head in a.kept]
    if missing := [head for head in heads if not math.isfinite(scores[head])]:
        problems = [Problem(f"scores: layer {layer}, head {head}", "a number", str(scores[layer, head])) for layer, head in missing[:20]]
        raise InputError(problems)
    return sorted(heads, key=lambda head: float(scores[head]))


def combine(several: Sequence[np.ndarray], how: str) -> np.ndarray:
    """Rankings of several languages as one (arXiv 2108.08375 §6, which names these and prints no formula).

    sd: the sum of the scores. md: every language's scores become ranks, and the heads are ranked anew by their mean rank.
    Raises InputError for rankings of different models.
    """
    if how not in COMBINATIONS:
        raise InputError(Problem("combination", " or ".join(COMBINATIONS), repr(how)))
    if len({scores.shape for scores in several}) != 1 or len({np.isnan(scores).tobytes() for scores in several}) != 1:
        raise InputError(Problem("rankings", "scores of the same heads", ", ".join(str(list(scores.shape)) for scores in several)))
    total: np.ndarray = np.sum([scores if how == "sd" else _ranks(scores) for scores in several], axis=0)
    return total


def without(spec: ModelSpec, heads: Sequence[Head]) -> Kept:
    """What the model keeps without `heads`; raises InputError where no head of the whole model is left."""
    gone = set(heads)
    kept = tuple(tuple(head for head in layer.attention.kept if (i, head) not in gone) for i, layer in enumerate(spec.layers))
    if not any(kept):
        raise InputError(Problem("heads", "at least one head in the model", "none: all are pruned"))
    return kept


@dataclass(frozen=True)
class Budget:
    """What a model may have: exactly one of heads, fraction of the heads that goes, FLOPs, parameters.

    flops: of a prefill of `rows` tokens, needed ones as engine.spec.cost counts them. flops and parameters of at most 1 are shares of the
    model's own.
    """

    heads: int | None = None
    fraction: float | None = None
    flops: float | None = None
    parameters: float | None = None
    rows: int = 128

    def check(self) -> Budget:
        """Self; raises InputError unless one budget is given and it is a sensible number."""
        given = {name: value for name in ("heads", "fraction", "flops", "parameters") if (value := getattr(self, name)) is not None}
        if len(given) != 1:
            raise InputError(Problem("budget", "one of heads, fraction, flops, parameters", ", ".join(given) or "none"))
        for name, value in given.items():
            most = 1.0 if name == "fraction" else math.inf
            if not math.isfinite(value) or not (0 <= value <= most):
                raise InputError(Problem(f"budget {name}", "a share from 0 to 1" if most == 1 else "a number of at least 0", str(value)))
        return self

    def kept(self, spec: ModelSpec, order: Sequence[Head]) -> Kept:
        """What is left when just enough of `order`, lowest first, are taken to meet the budget; raises InputError where that cannot be."""
        self.check()
        total = len(order)
        if self.heads is not None:
            if self.heads > total:
                raise InputError(Problem("budget heads", f"at most the model's {total} heads", str(self.heads)))
            return without(spec, order[: total - self.heads])
        if self.fraction is not None:
            return without(spec, order[: math.floor(self.fraction * total + 1e-9)])
        return without(spec, order[: self._fewest(spec, order)])

    def _fewest(self, spec: ModelSpec, order: Sequence[Head]) -> int:
        """Every head taken makes the model cheaper, so the fewest are found by halving."""
        name, asked, measure = (
            ("flops", self.flops, self._flops) if self.flops is not None else ("parameters", self.parameters, self._parameters)
        )
        assert asked is not None
        whole = measure(spec)
        most = asked * whole if asked <= 1 else asked

        def left(count: int) -> float:
            return measure(spec.with_kept(without(spec, order[:count])))

        low, high = 0, len(order) - 1
        if (least := left(high)) > most:
            raise InputError(Problem(f"budget {name}", f"at least {least:,.0f}, what the model has with one head left", f"{most:,.0f}"))
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if left(middle) <= most else (middle + 1, high)
        return low

    def _flops(self, spec: ModelSpec) -> float:
        return float(model_cost(spec, rows=self.rows).total.prefill.needed)

    def _parameters(self, spec: ModelSpec) -> float:
        return float(model_cost(spec, rows=1).total.parameters)


def _ranks(scores: np.ndarray) -> np.ndarray:
    """0 for the lowest score, equal scores in the order they stand, NaN where there is none."""
    ranks = np.full(scores.shape, np.nan)
    places = np.flatnonzero(~np.isnan(scores))
    order = places[np.argsort(scores.ravel()[places], kind="stable")]
    ranks.ravel()[order] = np.arange(len(order))
    return ranks
