"""What is measured: a geometry, random weights of it, and its dense, masked and compact models, all of the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import sqrt

import numpy as np

from engine.checkpoint import Checkpoint
from engine.checkpoint.surgery import mask, prune
from engine.errors import InputError, Problem
from engine.spec import AttentionSpec, Cluster, Embedding, LayerSpec, ModelSpec, OutputCluster, Table, Vocabulary

Kept = tuple[tuple[int, ...], ...]  # head numbers per layer


@dataclass(frozen=True)
class Geometry:
    """An All-attention model of arXiv 2110.03252: pre-norm, self included, learned distances, one attention part per layer.

    rows: tokens of a segment.  words, div: cluster sizes of the adaptive softmax and the factor between their widths; small_words: the
    plain vocabulary that stands in for it when only the layers are measured.  pruned: kept heads per layer of each pruned model.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    head_dim: int
    persistent: int
    window: int
    distances: int
    rows: int
    words: tuple[int, ...]
    div: int
    small_words: int
    pruned: tuple[tuple[int, ...], ...] = field(repr=False)


# Kept heads of the three published models, by their L0 coefficient 0.010, 0.015 and 0.020 (inference.py of the paper's repository).
S1 = Geometry(
    name="s1",
    layers=16,
    hidden=512,
    heads=8,
    head_dim=64,
    persistent=2048,
    window=193,
    distances=512,
    rows=192,
    words=(20000, 20000, 160000, 67735),
    div=4,
    small_words=1000,
    pruned=(
        (8, 3, 7, 6, 6, 6, 6, 7, 6, 7, 8, 8, 7, 8, 7, 6),
        (6, 4, 6, 5, 4, 5, 5, 6, 5, 6, 7, 5, 6, 6, 6, 5),
        (5, 2, 5, 4, 3, 4, 4, 4, 4, 4, 4, 4, 3, 3, 3, 3),
    ),
)
TINY = Geometry(
    name="tiny",
    layers=3,
    hidden=24,
    heads=4,
    head_dim=6,
    persistent=17,
    window=13,
    distances=24,
    rows=12,
    words=(20, 11, 34),
    div=2,
    small_words=40,
    pruned=((4, 1, 3), (3, 0, 1)),
)
GEOMETRIES = {geometry.name: geometry for geometry in (S1, TINY)}


def geometry(name: str) -> Geometry:
    """The geometry of that name; raises InputError naming those there are."""
    if name not in GEOMETRIES:
        raise InputError(Problem("geometry", " or ".join(GEOMETRIES), repr(name)))
    return GEOMETRIES[name]


def dense_spec(shape: Geometry, *, vocabulary: bool) -> ModelSpec:
    """The model with every head; `vocabulary` gives it the adaptive softmax, otherwise a small plain one."""
    attention = AttentionSpec(
        source_heads=shape.heads,
        kept=tuple(range(shape.heads)),
        kv_of=tuple(range(shape.heads)),
        head_dim=shape.head_dim,
        position=Table(shape.distances),
        persistent=shape.persistent,
        causal=True,
        sees_self=True,
        window=shape.window,
        segment=None,
        start="attended_zeros",
        spans=None,
        span_ramp=None,
        bias=False,
        output_bias=True,
        scaled=False,
    )
    layer = LayerSpec(attention, None, "layer", norm_first=True, norm_eps=1e-5, norm_offset=1.0)
    if vocabulary:
        widths = [shape.hidden // shape.div**index for index in range(len(shape.words))]
        inputs = tuple(Cluster(size, width, True) for size, width in zip(shape.words, widths, strict=True))
        outputs = tuple(OutputCluster(c.size, c.width, True, True, index > 0) for index, c in enumerate(inputs))
    else:
        inputs = (Cluster(shape.small_words, shape.hidden, False),)
        outputs = (OutputCluster(shape.small_words, shape.hidden, False, False, False),)
    return ModelSpec(
        hidden=shape.hidden,
        vocab=sum(c.size for c in inputs),
        layers=(layer,) * shape.layers,
        embedding=Embedding(inputs, shape.hidden**0.5),
        head=Vocabulary(outputs, "ascending", "hidden"),
        task="causal_lm",
    ).check()


def dense_model(shape: Geometry, *, vocabulary: bool, seed: int = 0) -> Checkpoint:
    """The dense model with random weights whose activations stay near 1 and whose softmaxes are neither flat nor one-hot."""
    spec = dense_spec(shape, vocabulary=vocabulary)
    draw = np.random.default_rng(seed)
    weights = {
        name: draw.standard_normal(size, dtype=np.float32) * np.float32(_spread(name, size, spec)) for name, size in spec.tensors().items()
    }
    return Checkpoint(spec, weights, {"format": "random", "geometry": shape.name, "seed": seed})


def _spread(name: str, size: tuple[int, ...], spec: ModelSpec) -> float:
    """Standard deviation of a tensor. Queries, keys and distances come out at 1.5, so that scores spread by about 3."""
    last = name.split(".")[-1]
    if last in ("query", "key", "relative"):
        return 1.5 / sqrt(spec.hidden)
    if last == "persistent_keys":
        return 1.5 / sqrt(size[-1])
    if last == "persistent_values":
        return 1 / sqrt(size[-2])  # the forward pass multiplies by √persistent
    if last in ("value", "output", "clusters"):
        return 1 / sqrt(size[-1])
    if last == "table":
        return 1.0
    if last == "projection":
        return 1 / sqrt(size[-1])  # [hidden, width]
    if name.startswith(("embedding.", "head.")) and len(size) == 2:
        return 1 / sqrt(spec.hidden)  # times √hidden on the way in
    return 0.1  # gains, biases


def choose_heads(shape: Geometry, counts: Sequence[int], seed: int = 0) -> Kept:
    """`counts[l]` head numbers of layer l, drawn at random so that they are not a prefix; the lists are published as counts only."""
    draw = np.random.default_rng((seed, sum(counts)))
    return tuple(tuple(sorted(draw.permutation(shape.heads)[:count].tolist())) for count in counts)


def masked(dense: Checkpoint, kept: Kept) -> Checkpoint:
    """The dense model with the other heads' outputs multiplied by 0: as much work as dense, the answers of compact."""
    return mask(dense, kept)


def compact(dense: Checkpoint, kept: Kept) -> Checkpoint:
    """The dense model with the other heads cut out."""
    return prune(dense, kept)


def kept_lists(shape: Geometry) -> dict[int, Kept]:
    """Number of kept heads → head numbers per layer, for each pruned model of a geometry."""
    return {sum(counts): choose_heads(shape, counts) for counts in shape.pruned}


def level_lists(shape: Geometry, levels: Sequence[int]) -> dict[int, Kept]:
    """The same for percentages of heads removed from every layer alike; 0 is the dense model itself and needs no list."""
    counts = {level: round(shape.heads * (1 - level / 100)) for level in levels}
    problems = [
        Problem("level", f"a percentage from 0 that leaves one of {shape.heads} heads", str(level))
        for level, count in counts.items()
        if level < 0 or count < 1
    ]
    if problems:
        raise InputError(problems)
    return {count * shape.layers: choose_heads(shape, [count] * shape.layers) for count in counts.values() if count < shape.heads}


def geometry_specs(shape: Geometry) -> dict[str, ModelSpec]:
    """The dense model of a geometry and each pruned one, with the vocabulary."""
    dense = dense_spec(shape, vocabulary=True)
    lists = kept_lists(shape)
    return {f"{shape.heads * shape.layers} heads": dense} | {f"{total} heads": dense.with_kept(kept) for total, kept in lists.items()}
