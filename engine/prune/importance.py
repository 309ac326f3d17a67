"""What each head contributes: sums over batches that can be stopped and gone on with, and their normalisations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from engine.errors import EngineError, Problem
from engine.prune.batches import TaggedBatch
from engine.prune.encoder import TaggingEncoder
from engine.spec import ModelSpec


@dataclass
class Sums:
    """values [layers, source heads] of the heads a model has, NaN for those it has not; `weight` is what they are divided by."""

    values: np.ndarray
    weight: float = 0.0
    batches: int = 0

    @staticmethod
    def of(spec: ModelSpec) -> Sums:
        """Zeros."""
        return Sums(scatter(spec, [np.zeros(layer.attention.heads) for layer in spec.layers]))


def scatter(spec: ModelSpec, rows: Sequence[np.ndarray]) -> np.ndarray:
    """Numbers of each layer's heads [heads] → [layers, source heads] by the source's head numbers, NaN where a head is gone."""
    attentions = [layer.attention for layer in spec.layers]
    values = np.full((len(attentions), max(a.source_heads for a in attentions)), np.nan)
    for index, (a, row) in enumerate(zip(attentions, rows, strict=True)):
        values[index, list(a.kept)] = row
    return values


def add_gradient(encoder: TaggingEncoder, batch: TaggedBatch, sums: Sums) -> None:
    """|d loss(batch) / d mask|, the mask at ones; divided by tokens: I of arXiv 2108.08375 §3.2 and its base library's script.

    The absolute value is of the batch's gradient, so the result depends on the batches.
    """
    mask = encoder.full_mask()
    _add(encoder, batch, sums, [g.abs() for g in _gradients(encoder.loss(batch, mask), mask)], batch.tokens)


def add_michel(encoder: TaggingEncoder, batch: TaggedBatch, sums: Sums) -> None:
    """Σ_x |d L(x) / d ξ_h| over sequences x, each with a mask of its own; L(x) the mean over x's words (arXiv 1905.10650 eq. 2)."""
    mask = encoder.full_mask(len(batch.examples))
    per_word = F.cross_entropy(encoder.logits(batch, mask), batch.labels, reduction="none")
    words = torch.bincount(batch.row, minlength=len(batch.examples))
    loss = (per_word / words[batch.row]).sum()  # sequences do not see each other: each one's mask gets its own gradient
    _add(encoder, batch, sums, [g.abs().sum(0) for g in _gradients(loss, mask)], len(batch.examples))


def add_confidence(encoder: TaggingEncoder, batch: TaggedBatch, sums: Sums) -> None:
    """The largest attention weight of each token, summed over tokens (arXiv 1905.09418 §4, which leaves out the end of the sentence)."""
    rows: dict[int, torch.Tensor] = {}

    def watch(index: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, seen: torch.Tensor, dropout: float) -> torch.Tensor:
        scores = (query @ key.transpose(-1, -2)) * query.shape[-1] ** -0.5
        weights = torch.softmax(scores.masked_fill(~seen, -torch.inf), -1)  # [B, H, T, T]
        rows[index] = (weights.amax(-1) * seen[:, 0]).sum((0, 2))
        return weights @ value

    with torch.no_grad():
        encoder.logits(batch, attend=watch)
    layers = encoder.spec.layers
    _add(encoder, batch, sums, [rows.get(index, torch.zeros(layer.attention.heads)) for index, layer in enumerate(layers)], batch.tokens)


Add = Callable[[TaggingEncoder, TaggedBatch, Sums], None]
BY_DATA: dict[str, Add] = {"gradient": add_gradient, "michel": add_michel, "confidence": add_confidence}


def finish(method: str, sums: Sums) -> np.ndarray:
    """Scores [layers, source heads] float64 of sums over data: gradient in [0, 1] over the model, michel of length 1 in each layer."""
    mean = sums.values / max(sums.weight, 1.0)
    if method == "gradient":
        return to_unit(per_layer(mean))
    return per_layer(mean) if method == "michel" else mean


def per_layer(scores: np.ndarray) -> np.ndarray:
    """Each layer divided by its Euclidean length + 1e-20."""
    result: np.ndarray = scores / (np.sqrt(np.nansum(scores**2, axis=1, keepdims=True)) + 1e-20)
    return result


def to_unit(scores: np.ndarray) -> np.ndarray:
    """Scaled to [0, 1] over the whole model; zeros where all are equal."""
    low, high = np.nanmin(scores), np.nanmax(scores)
    result: np.ndarray = (scores - low) / (high - low) if high > low else scores - low
    return result


def magnitude(spec: ModelSpec, weights: dict[str, np.ndarray]) -> np.ndarray:
    """The Euclidean length of each head's query, key, value and output weights together: a control that needs no data."""
    rows = []
    for index, layer in enumerate(spec.layers):
        a, prefix, total = layer.attention, f"layers.{index}.attention.", np.zeros(layer.attention.heads)
        for name in ("query", "key", "value") if a.heads else ():
            total += (np.asarray(weights[prefix + name], np.float64).reshape(a.heads, -1) ** 2).sum(1)
        if a.heads:
            output = np.asarray(weights[prefix + "output"], np.float64).reshape(spec.hidden, a.heads, -1)
            total += (output**2).sum((0, 2))
        rows.append(np.sqrt(total))
    return scatter(spec, rows)


def random_scores(spec: ModelSpec, seed: int) -> np.ndarray:
    """A seeded random order of all heads, in [0, 1): the control of arXiv 2108.08375 §5 (its seed was 42)."""
    sizes = [layer.attention.heads for layer in spec.layers]
    order = np.random.default_rng(seed).permutation(sum(sizes)) / max(sum(sizes), 1)
    return scatter(spec, np.split(order, np.cumsum(sizes)[:-1]))


def _gradients(loss: torch.Tensor, mask: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Of the mask alone, zeros for layers without heads: no gradient of a weight is formed."""
    found = torch.autograd.grad(loss, list(mask), allow_unused=True)
    return [torch.zeros_like(m) if g is None else g for g, m in zip(found, mask, strict=True)]


def _add(encoder: TaggingEncoder, batch: TaggedBatch, sums: Sums, rows: Sequence[torch.Tensor], weight: float) -> None:
    values = [row.double().cpu().numpy() for row in rows]
    wrong = [index for index, row in enumerate(values) if not np.isfinite(row).all()]
    if wrong:
        where = f"importance of layers {wrong} in batch {sums.batches}"
        hint = "the model's weights or its loss overflow: take an earlier checkpoint or a lower learning rate"
        raise EngineError(Problem(where, "finite numbers", "NaN or infinity"), hint=hint)
    sums.values += scatter(encoder.spec, values)
    sums.weight += weight
    sums.batches += 1
