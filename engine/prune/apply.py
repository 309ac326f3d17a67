"""`apply`: a ranking and a budget, or a mask, → a compact checkpoint that says where its heads went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from engine.checkpoint import Checkpoint
from engine.checkpoint.surgery import prune
from engine.formats.heads import HeadChoice
from engine.prune.select import Budget, Head, order_of, without


def apply_ranking(checkpoint: Checkpoint, scores: np.ndarray, budget: Budget, about: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint without its lowest heads, as few as the budget allows. Raises InputError for scores of another model."""
    kept = budget.kept(checkpoint.spec, order_of(scores, checkpoint.spec))
    given = {name: value for name, value in asdict(budget).items() if value is not None}
    return _note(prune(checkpoint, kept), {**about, "budget": given})


def apply_mask(checkpoint: Checkpoint, choice: HeadChoice, about: Mapping[str, Any]) -> Checkpoint:
    """Only the mask's heads among those the checkpoint still has, times their scales. Raises InputError where none is left."""
    scales = choice.scales or tuple((1.0,) * len(kept) for kept in choice.kept)
    factors = [dict(zip(kept, row, strict=True)) for kept, row in zip(choice.kept, scales, strict=True)]
    attentions = [layer.attention for layer in checkpoint.spec.layers]
    gone = [(i, head) for i, a in enumerate(attentions) for head in a.kept if head not in factors[i]]
    kept = without(checkpoint.spec, gone)
    return _note(prune(checkpoint, kept, [[factors[i][head] for head in row] for i, row in enumerate(kept)]), about)


def apply_heads(checkpoint: Checkpoint, heads: Sequence[Head], about: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint without these heads."""
    return _note(prune(checkpoint, without(checkpoint.spec, heads)), about)


def _note(checkpoint: Checkpoint, about: Mapping[str, Any]) -> Checkpoint:
    return replace(checkpoint, provenance={**checkpoint.provenance, "pruning": dict(about)})
