"""What `python -m bench encoder` measures: an encoder of BERT's shape with random weights, its pruned model, and the texts they encode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import numpy as np

from bench.core.cases import Kept
from engine.checkpoint import Checkpoint
from engine.errors import InputError, Problem
from engine.formats.hugging_face.encoder import layer_spec
from engine.formats.hugging_face.heads import Heads
from engine.measure.tokens import random_ids
from engine.spec import Cluster, Embedding, ModelSpec
from engine.spec.cost import model_cost


@dataclass(frozen=True)
class EncoderShape:
    """A BERT without its pooler (arXiv 1810.04805). kept: heads per layer of the pruned model.

    one: tokens of the single text.  ragged: texts of the batch, of shortest to `one` tokens each.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    width: int
    vocab: int
    positions: int
    kept: tuple[int, ...] = field(repr=False)
    one: int
    ragged: int
    shortest: int

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def every(self) -> Kept:
        """All heads of every layer."""
        return (tuple(range(self.heads)),) * self.layers


BERT = EncoderShape(
    name="bert-base",
    layers=12,
    hidden=768,
    heads=12,
    width=3072,
    vocab=30522,
    positions=512,
    kept=(12, 7, 5, 4, 6, 6, 3, 4, 5, 2, 3, 4),
    one=128,
    ragged=32,
    shortest=8,
)
TINY = EncoderShape(
    name="tiny", layers=3, hidden=24, heads=3, width=40, vocab=50, positions=16, kept=(3, 1, 2), one=12, ragged=5, shortest=2
)
SHAPES = {shape.name: shape for shape in (BERT, TINY)}


def shape_of(name: str) -> EncoderShape:
    """The shape of that name; raises InputError naming those there are."""
    if name not in SHAPES:
        raise InputError(Problem("shape", " or ".join(SHAPES), repr(name)))
    return SHAPES[name]


@dataclass(frozen=True)
class Texts:
    """Token ids of each text of a batch [tokens] int64."""

    ids: tuple[np.ndarray, ...]

    @property
    def lengths(self) -> list[int]:
        return [len(ids) for ids in self.ids]

    @property
    def tokens(self) -> int:
        """Of all texts, padding left out."""
        return sum(self.lengths)

    def padded(self) -> tuple[np.ndarray, np.ndarray]:
        """ids and mask [texts, longest] int64, zeros behind the end of a text."""
        mask = (np.arange(max(self.lengths)) < np.array(self.lengths)[:, None]).astype(np.int64)
        ids = np.zeros_like(mask)
        ids[mask == 1] = np.concatenate(self.ids)
        return ids, mask

    def visible(self, hidden: np.ndarray) -> np.ndarray:
        """hidden [texts, longest, hidden] → [tokens, hidden], padding left out."""
        return np.concatenate([rows[:length] for rows, length in zip(hidden, self.lengths, strict=True)])


def texts_of(shape: EncoderShape, work: str) -> Texts:
    """`one` text of the shape's length, or the `ragged` batch, its lengths drawn uniformly."""
    if work == "one":
        return Texts((random_ids(shape.vocab, (shape.one,), seed=1),))
    lengths = np.random.default_rng(2).integers(shape.shortest, shape.one, shape.ragged, endpoint=True)
    return Texts(tuple(random_ids(shape.vocab, (length,), seed=3 + index) for index, length in enumerate(lengths.tolist())))


def dense_encoder(shape: EncoderShape, seed: int = 0) -> Checkpoint:
    """All heads and random weights: scores spread by about 2, sums stay near 1 behind every norm."""
    heads = Heads(shape.heads, shape.head_dim, shape.every, {})
    layers = tuple(layer_spec(heads, kept, shape.width, "gelu", 1e-12) for kept in heads.kept)
    embedding = Embedding((Cluster(shape.vocab, shape.hidden, False),), 1.0, shape.positions, 0, 2, True, None)
    spec = ModelSpec(shape.hidden, shape.vocab, layers, embedding, None, "hidden").check()
    draw = np.random.default_rng(seed)
    weights = {name: _drawn(draw, name, size) for name, size in spec.tensors().items()}
    return Checkpoint(spec, weights, {"format": "huggingface", "config": _config(shape), "seed": seed})


def _drawn(draw: np.random.Generator, name: str, size: tuple[int, ...]) -> np.ndarray:
    values = draw.standard_normal(size, dtype=np.float32)
    if len(size) == 1:
        centre = 1.0 if name.endswith("norm") else 0.0
        return np.float32(centre) + np.float32(0.1) * values
    if name.startswith("embedding."):
        return values
    spread = 1.5 if name.endswith((".query", ".key")) else 1.0
    return values * np.float32(spread / sqrt(size[1]))


def _config(shape: EncoderShape) -> dict[str, Any]:
    """config.json as transformers 4 writes it for such a model."""
    config: dict[str, Any] = {"model_type": "bert", "architectures": ["BertModel"], "hidden_act": "gelu", "layer_norm_eps": 1e-12}
    config |= {"hidden_size": shape.hidden, "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads}
    config |= {"intermediate_size": shape.width, "vocab_size": shape.vocab, "max_position_embeddings": shape.positions}
    return config | {"type_vocab_size": 2, "pad_token_id": 0}


def pruned_heads(shape: EncoderShape) -> Kept:
    """The head numbers the pruned model keeps, drawn so that they are not a prefix."""
    draw = np.random.default_rng((0, sum(shape.kept)))
    return tuple(tuple(sorted(draw.permutation(shape.heads)[:count].tolist())) for count in shape.kept)


def flops(spec: ModelSpec, lengths: Sequence[int]) -> int:
    """FLOPs needed for texts of these lengths."""
    return sum(model_cost(spec, rows=length).prefill().needed for length in lengths)
