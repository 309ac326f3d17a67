"""What a case should cost: FLOPs of one call, from engine.spec.cost, with the vocabulary counted as far as the call computes it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.spec import ModelSpec, Vocabulary
from engine.spec.cost import inside, model_cost
from engine.spec.cost_parts import Flops


def layers_flops(spec: ModelSpec, *, work: str, batch: int, rows: int) -> Flops:
    """The layers alone: a segment of `rows` tokens of each sequence, or one token of each."""
    cost = inside(model_cost(spec, rows=rows, batch=batch))
    return cost.prefill if work == "score" else cost.decode


def model_flops(spec: ModelSpec, ids: np.ndarray, targets: np.ndarray | None, *, work: str) -> Flops:
    """Embedding, layers and vocabulary of ids [batch, rows].

    With targets their log-probabilities are computed: the first cluster for every row, a tail for the rows whose target is in it. Without,
    the first cluster of each sequence's last row, all that a greedy choice needs as long as no tail outweighs the best word.
    """
    batch, rows = ids.shape
    cost = model_cost(spec, rows=rows, batch=batch, token_counts=_counts(ids, [c.size for c in spec.embedding.clusters]))
    total = cost.prefill() if work == "score" else cost.decode
    whole = next(part for part in cost.parts if part.name == "vocabulary")
    full = whole.prefill if work == "score" else whole.decode
    assert isinstance(spec.head, Vocabulary)
    sizes = [c.size for c in spec.head.clusters]
    read = [batch] + [0] * (len(sizes) - 1) if targets is None else [targets.size, *_counts(targets, sizes)[1:]]
    words = vocabulary_flops(spec, read)
    return Flops(total.needed - full.needed + words, total.executed - full.executed + words)


def vocabulary_flops(spec: ModelSpec, rows: Sequence[int]) -> int:
    """rows[c]: rows for which cluster c is computed, the tails' entries with the first; all rows everywhere: engine.spec.cost's figure."""
    assert isinstance(spec.head, Vocabulary)
    clusters = spec.head.clusters
    words = sum(n * c.width * (c.size + (spec.hidden if c.projected else 0)) for n, c in zip(rows, clusters, strict=True))
    entry_width = spec.hidden if spec.head.cluster_input == "hidden" else clusters[0].width
    return 2 * (words + rows[0] * (len(clusters) - 1) * entry_width)


def _counts(ids: np.ndarray, sizes: Sequence[int]) -> list[int]:
    """Tokens of `ids` in each cluster."""
    edges = np.concatenate(([0], np.cumsum(sizes)))
    return [int(count) for count in np.histogram(ids, bins=edges)[0]]
