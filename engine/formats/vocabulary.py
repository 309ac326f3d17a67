"""Embedding and output side of a source, in one form: clusters of token rows in, spec parts and weights out; ties found by equality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from engine.spec import Cluster, Embedding, OutputCluster, Vocabulary


@dataclass(frozen=True)
class InputRows:
    """Input side of one cluster: rows [size, width], projection [hidden, width] where the rows are projected."""

    rows: np.ndarray
    projection: np.ndarray | None = None


@dataclass(frozen=True)
class OutputRows:
    """Output side of one cluster: logits = (h · projection) · rowsᵀ + bias, projection [hidden, width] or none."""

    rows: np.ndarray
    bias: np.ndarray | None
    projection: np.ndarray | None = None


@dataclass(frozen=True)
class ClusterEntries:
    """The further clusters' own entries in the first softmax, ascending or descending: rows [tails, hidden or width], bias [tails]."""

    rows: np.ndarray
    bias: np.ndarray | None
    order: Literal["ascending", "descending"]
    cluster_input: Literal["hidden", "projected"]


def same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    """Whether two arrays hold the same bytes (shape, dtype, every bit); two absent ones do."""
    if a is None or b is None:
        return a is b
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.ctypes.data == b.ctypes.data and a.strides == b.strides:
        return True
    return np.array_equal(np.ascontiguousarray(a).view(np.uint8), np.ascontiguousarray(b).view(np.uint8))


def cluster_sizes(cutoffs: Sequence[int], vocab: int) -> list[int]:
    """Tokens per cluster: the differences of 0, cutoffs..., vocab; [vocab] without cutoffs."""
    edges = [0, *cutoffs, vocab]
    return [stop - start for start, stop in pairwise(edges)]


def build(
    inputs: Sequence[InputRows],
    outputs: Sequence[OutputRows],
    entries: ClusterEntries | None,
    *,
    scale: float,
) -> tuple[Embedding, Vocabulary, dict[str, np.ndarray]]:
    """Spec parts and the tensors of `embedding.*` and `head.*`.

    A tied output cluster (its rows equal the embedding's rows of the same tokens) and a tied projection (equal to the input projection of
    the same number) are not stored again. Call it once shapes are known to be right: consecutive tokens, both sides covering all of them.
    """
    weights: dict[str, np.ndarray] = {}
    for index, given in enumerate(inputs):
        weights[f"embedding.{index}"] = given.rows
        if given.projection is not None:
            weights[f"embedding.{index}.projection"] = given.projection
    clusters, start = [], 0
    for index, output in enumerate(outputs):
        source = _embedding_rows(inputs, start, len(output.rows))
        tied = source is not None and same(source, output.rows)
        projection = inputs[index].projection if index < len(inputs) else None
        tied_projection = output.projection is not None and projection is not None and same(projection, output.projection)
        if not tied:
            weights[f"head.{index}"] = output.rows
        if output.bias is not None:
            weights[f"head.{index}.bias"] = output.bias
        if output.projection is not None and not tied_projection:
            weights[f"head.{index}.projection"] = output.projection
        size, width = output.rows.shape
        clusters.append(OutputCluster(size, width, output.projection is not None, tied, tied_projection))
        start += size
    if entries is not None:
        weights["head.clusters"] = entries.rows
        if entries.bias is not None:
            weights["head.clusters_bias"] = entries.bias
    embedding = Embedding(tuple(Cluster(given.rows.shape[0], given.rows.shape[1], given.projection is not None) for given in inputs), scale)
    vocabulary = Vocabulary(
        tuple(clusters),
        order=entries.order if entries else "ascending",
        cluster_input=entries.cluster_input if entries else "hidden",
        bias=all(output.bias is not None for output in outputs),
    )
    return embedding, vocabulary, weights


def _embedding_rows(inputs: Sequence[InputRows], start: int, size: int) -> np.ndarray | None:
    """The embedding's rows of tokens start .. start + size - 1, or None where they span two clusters."""
    first = 0
    for given in inputs:
        count = len(given.rows)
        if first <= start and start + size <= first + count:
            return given.rows[start - first : start - first + size]
        first += count
    return None
