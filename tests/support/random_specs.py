"""Random small models over everything a spec can say that runs, drawn from a seed: the same checkpoint on every machine."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.checkpoint import Checkpoint
from engine.spec import (
    AttentionSpec,
    Cluster,
    Embedding,
    FeedForward,
    LayerSpec,
    ModelSpec,
    OutputCluster,
    Position,
    SharedTable,
    Sinusoid,
    Table,
    Vocabulary,
)

DIALECTS = ("table", "shared", "sinusoid")
WINDOWS = (1, 2, 5, 17, 63, 65)
LENGTHS = (1, 2, 5, 17, 63, 65)
MAX_WORK = 12_000  # row · head · key triples of one case: the oracle's loops stay well under a second


def random_checkpoint(seed: int) -> Checkpoint:
    """A model whose dialect × norm × start walks through all combinations as the seed counts up; everything else is drawn."""
    rng = np.random.default_rng(seed)
    dialect, norm_first, start = DIALECTS[seed % 3], seed // 3 % 2 == 0, ("attended_zeros", "empty")[seed // 6 % 2]
    hidden = int(rng.choice((8, 12, 18, 24)))
    sees_self = start == "empty" or (dialect != "shared" if rng.random() < 0.8 else bool(rng.random() < 0.5))
    layer_count = int(rng.integers(1, 4))
    windows = [int(rng.choice(WINDOWS))] * layer_count if rng.random() < 0.7 else [int(w) for w in rng.choice(WINDOWS, layer_count)]
    segment = int(rng.choice((1, 2, 3, 7, 64))) if sees_self and rng.random() < 0.4 else None
    position = _position(rng, dialect, max(windows) + (segment or 1) - 1)
    bias, output_bias, spans = rng.random() < 0.4, rng.random() < 0.5, rng.random() < (0.5 if dialect == "shared" else 0.15)
    head_dim, scaled = int(rng.integers(4, 9)), bool(rng.random() < 0.3)
    persistent, with_feed_forward = int(rng.choice((0, 1, 17))), rng.random() < 0.5
    layers = []
    for window in windows:
        kept, source_heads = _kept(rng)
        attention = AttentionSpec(
            source_heads=source_heads,
            kept=kept,
            kv_of=tuple(range(len(kept))),
            head_dim=head_dim,
            position=position,
            persistent=persistent,
            causal=True,
            sees_self=sees_self,
            window=window,
            segment=segment,
            start=start,  # type: ignore[arg-type]
            spans=tuple(float(s) for s in rng.uniform(0, window, len(kept))) if spans else None,
            span_ramp=int(rng.integers(1, 9)) if spans else None,
            bias=bool(bias),
            output_bias=bool(output_bias),
            scaled=scaled,
        )
        feed_forward = FeedForward(int(rng.integers(1, 20)), "relu", False, bool(rng.random() < 0.7)) if with_feed_forward else None
        layers.append(LayerSpec(attention, feed_forward, "layer", norm_first, 1e-5, float(rng.random() < 0.5)))
    tails, div_value = int(rng.integers(0, 4)), int(rng.choice((1, 2, 4)))
    embedding, head = _vocabulary(rng, hidden, tails, div_value)
    vocab = sum(c.size for c in head.clusters)
    final_norm = bool(rng.random() < 0.25)
    spec = ModelSpec(hidden, vocab, tuple(layers), embedding, head, "causal_lm", final_norm).check()
    return Checkpoint(spec, random_weights(spec, rng), {"seed": seed, "dialect": dialect, "div_value": div_value if tails else None})


def random_length(checkpoint: Checkpoint) -> int:
    """How many tokens to run: a listed length that the oracle's loops can afford."""
    rng = np.random.default_rng(int(checkpoint.provenance["seed"]) + 1_000_000)
    cost = sum((a.heads or 1) * ((a.reach or 1) + a.persistent) for a in (layer.attention for layer in checkpoint.spec.layers))
    lengths = [length for length in LENGTHS if length * cost <= MAX_WORK]
    return int(rng.choice(lengths[-4:]))


def random_weights(spec: ModelSpec, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Weights for which the scores of a row differ by several units and every term of the model weighs in the result."""
    return {
        name: (rng.standard_normal(shape) * _spread(spec, name) + _centre(spec, name)).astype(np.float32)
        for name, shape in spec.tensors().items()
    }


def _spread(spec: ModelSpec, name: str) -> float:
    part = name.split(".")[-1]
    if part in ("query", "key", "relative"):
        return 1.4 / float(np.sqrt(spec.hidden))
    if part == "persistent_keys":
        return 1.0 / float(np.sqrt(spec.layers[0].attention.head_dim))
    if part == "persistent_values":
        return 1.0 / float(np.sqrt(spec.layers[0].attention.persistent))
    if name == "position.table" or part in ("content_bias", "position_bias"):
        return 1.0
    if name == "position.frequencies":
        return 0.0
    if part.endswith(("bias", "norm", "head_scale")):
        return 0.3
    if name.startswith("embedding.") and part != "projection":
        return 1.0 / spec.embedding.scale
    return 1.2 / float(np.sqrt(spec.tensors()[name][-1]))


def _centre(spec: ModelSpec, name: str) -> Any:
    if name == "position.frequencies":
        return 10000.0 ** (-np.arange(spec.hidden // 2) * 2.0 / spec.hidden)
    if name.endswith("head_scale"):
        return 1.0
    if name.endswith("_norm"):
        index = int(name.split(".")[1]) if name.startswith("layers.") else -1
        return 1.0 - spec.layers[index].norm_offset
    return 0.0


def _position(rng: np.random.Generator, dialect: str, reach: int) -> Position:
    rows = reach + int(rng.choice((0, 0, 3)))
    if dialect == "table":
        return Table(rows)
    if dialect == "shared":
        return SharedTable(rows)
    return Sinusoid(None if rng.random() < 0.5 else int(rng.integers(1, reach + 2)))


def _kept(rng: np.random.Generator) -> tuple[tuple[int, ...], int]:
    """0 to 8 kept heads of as many or up to four more source heads, rarely the first ones."""
    heads = int(rng.integers(0, 9))
    source = max(1, heads + int(rng.integers(0, 5)))
    return tuple(sorted(int(h) for h in rng.choice(source, heads, replace=False))), source


def _vocabulary(rng: np.random.Generator, hidden: int, tails: int, div_value: int) -> tuple[Embedding, Vocabulary]:
    """Plain or adaptive, widths falling by div_value, every way of tying the two sides."""
    sizes = [int(rng.integers(2, 13)), *(int(size) for size in rng.integers(1, 13, tails))]
    top = hidden if rng.random() < 0.7 else hidden // 2  # width of the first cluster
    widths = [max(1, top // div_value**c) for c in range(tails + 1)]
    projected = [width != hidden or div_value > 1 or rng.random() < 0.2 for width in widths]
    whole = div_value == 1 and rng.random() < 0.5  # Transformer-XL without div_val: one input table, sliced by the output clusters
    inputs = (
        [Cluster(sum(sizes), top, bool(projected[0]))]
        if whole
        else [Cluster(*c) for c in zip(sizes, widths, map(bool, projected), strict=True)]
    )
    outputs = []
    for c, (size, width, has_projection) in enumerate(zip(sizes, widths, projected, strict=True)):
        tied_projection = has_projection and c < len(inputs) and inputs[c].projected and rng.random() < 0.5
        outputs.append(OutputCluster(size, width, bool(has_projection), bool(rng.random() < 0.5), bool(tied_projection)))
    embedding = Embedding(tuple(inputs), 1.0 if rng.random() < 0.5 else float(hidden) ** 0.5)
    order: Any = "ascending" if rng.random() < 0.5 else "descending"
    reads: Any = "hidden" if rng.random() < 0.5 else "projected"
    return embedding, Vocabulary(tuple(outputs), order, reads, bool(rng.random() < 0.8))
