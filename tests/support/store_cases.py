"""Seeded random specs of every dialect, and weights for them, for the tests of spec, checkpoint and surgery."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from engine.checkpoint import Checkpoint
from engine.spec import (
    Absolute,
    AttentionSpec,
    Cluster,
    Embedding,
    FeedForward,
    Labels,
    LayerSpec,
    ModelSpec,
    OutputCluster,
    Position,
    SharedTable,
    Sinusoid,
    Table,
    Vocabulary,
)

DIALECTS = ("aiha", "fair", "txl", "encoder")
DTYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(np.float64), np.dtype(ml_dtypes.bfloat16))


def random_spec(seed: int, dialect: str | None = None) -> ModelSpec:
    """A small legal spec; `dialect` is drawn when not given."""
    rng = np.random.default_rng(seed)
    dialect = dialect or DIALECTS[seed % len(DIALECTS)]
    hidden, vocab = 2 * int(rng.integers(2, 6)), int(rng.integers(7, 40))
    window = int(rng.choice([1, 2, 63, 65]))
    position = _position(dialect, rng, window)
    layers = tuple(_layer(dialect, rng, position, window) for _ in range(int(rng.integers(1, 4))))
    inputs = _clusters(rng, hidden, vocab, adaptive=dialect != "encoder")
    encoder = dialect == "encoder"
    return ModelSpec(
        hidden=hidden,
        vocab=vocab,
        layers=layers,
        embedding=Embedding(
            inputs, scale=float(rng.choice([1.0, hidden**0.5])), positions=9 if encoder else 0, token_types=2 * encoder, norm=encoder
        ),
        head=Labels(labels=3, pooled=False) if encoder else _vocabulary(rng, inputs),
        task="token_classification" if encoder else "causal_lm",
        final_norm=bool(rng.integers(2)),
    )


def random_checkpoint(seed: int, dialect: str | None = None, dtype: np.dtype | None = None) -> Checkpoint:
    """Weights for a random spec; mixed types when `dtype` is not given."""
    rng = np.random.default_rng(seed + 1_000_000)
    spec = random_spec(seed, dialect)
    weights = {
        name: rng.standard_normal(shape).astype(dtype or DTYPES[int(rng.integers(len(DTYPES)))]) for name, shape in spec.tensors().items()
    }
    tokenizer = '{"model": "Zeichen: ä, 字"}' if seed % 2 else None
    return Checkpoint(spec, weights, {"format": "test", "converter_version": 1, "seed": seed}, tokenizer)


def assert_same(found: Checkpoint, expected: Checkpoint) -> None:
    """Bit for bit, types and order of the tensors included."""
    assert found.spec == expected.spec
    assert dict(found.provenance) == dict(expected.provenance)
    assert found.tokenizer == expected.tokenizer
    assert list(found.weights) == list(expected.spec.tensors())
    for name, array in expected.weights.items():
        assert found.weights[name].dtype == array.dtype, name
        assert found.weights[name].shape == array.shape, name
        assert found.weights[name].tobytes() == array.tobytes(), name


def _position(dialect: str, rng: np.random.Generator, window: int) -> Position:
    match dialect:
        case "aiha":
            return Table(rows=window + int(rng.integers(8, 11)))
        case "fair":
            return SharedTable(rows=window + int(rng.integers(3)))
        case "txl":
            return Sinusoid(clamp=None if rng.integers(2) else 5)
    return Absolute()


def _layer(dialect: str, rng: np.random.Generator, position: Position, window: int) -> LayerSpec:
    feed_forward = None
    if dialect != "fair" or rng.integers(2):
        feed_forward = FeedForward(
            width=int(rng.integers(1, 9)), activation="relu", gated=bool(rng.integers(2)), bias=bool(rng.integers(2))
        )
    return LayerSpec(
        attention=_attention(dialect, rng, position, window),
        feed_forward=feed_forward,
        norm="rms" if dialect == "encoder" else "layer",
        norm_first=bool(rng.integers(2)),
        norm_eps=1e-5,
        norm_offset=1.0 if dialect == "aiha" else 0.0,
    )


def _attention(dialect: str, rng: np.random.Generator, position: Position, window: int) -> AttentionSpec:
    heads = int(rng.choice([0, 1, 3, 7]))
    kept = tuple(sorted(rng.choice(8, heads, replace=False).tolist()))
    spans = tuple(float(s) for s in rng.uniform(0, window, heads)) if dialect == "fair" and rng.integers(2) else None
    return AttentionSpec(
        source_heads=8,
        kept=kept,
        kv_of=tuple(range(heads)),
        head_dim=3 if position.__class__ is SharedTable else int(rng.integers(1, 6)),
        position=position,
        persistent=int(rng.choice([0, 1, 17])),
        causal=dialect != "encoder",
        sees_self=dialect in ("aiha", "txl", "encoder"),
        window=None if dialect == "encoder" else window,
        segment=int(rng.integers(1, 8)) if dialect == "aiha" and rng.integers(2) else None,
        start="attended_zeros" if dialect in ("aiha", "fair") else "empty",
        spans=spans,
        span_ramp=None if spans is None else 4,
        bias=bool(rng.integers(2)),
        output_bias=bool(rng.integers(2)),
        scaled=bool(rng.integers(2)),
    )


def _clusters(rng: np.random.Generator, hidden: int, vocab: int, adaptive: bool) -> tuple[Cluster, ...]:
    count = int(rng.integers(1, 4)) if adaptive else 1
    cuts = [0, *sorted(rng.choice(np.arange(1, vocab), count - 1, replace=False).tolist()), vocab]
    factor = int(rng.choice([1, 2, 4]))
    widths = [max(1, hidden // factor**i) for i in range(count)]
    return tuple(Cluster(stop - start, width, width != hidden) for start, stop, width in zip(cuts[:-1], cuts[1:], widths, strict=True))


def _vocabulary(rng: np.random.Generator, inputs: tuple[Cluster, ...]) -> Vocabulary:
    clusters = []
    for c in inputs:
        tied = bool(rng.integers(2))
        clusters.append(OutputCluster(c.size, c.width, c.projected, tied, tied_projection=tied and c.projected and bool(rng.integers(2))))
    return Vocabulary(
        tuple(clusters),
        order="ascending" if rng.integers(2) else "descending",
        cluster_input="hidden" if rng.integers(2) else "projected",
        bias=bool(rng.integers(2)),
    )
