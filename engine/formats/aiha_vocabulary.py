"""Embedding and softmax of aiha-lab: plain, or adaptive with clusters in order whose entries read the raw hidden state.

Source: nnlib's adaptive embedding and softmax in the aiha-lab/Attention-Head-Pruning repository; S1 = arXiv 2110.03252.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from engine.errors import Problem
from engine.formats.base import Settings, SourceTensors
from engine.formats.vocabulary import ClusterEntries, InputRows, OutputRows, build, same
from engine.spec import Embedding, Vocabulary


@dataclass(frozen=True)
class SourceVocabulary:
    """Both sides as read; build() once no problem is left."""

    inputs: list[InputRows]
    outputs: list[OutputRows]
    entries: ClusterEntries | None
    scale: float

    def build(self) -> tuple[Embedding, Vocabulary, dict[str, np.ndarray]]:
        return build(self.inputs, self.outputs, self.entries, scale=self.scale)


def read_vocabulary(source: SourceTensors, settings: Settings, hidden: int, problems: list[Problem]) -> SourceVocabulary:
    """Take every vocabulary tensor; layouts: no cutoffs, cutoffs with projections, cutoffs with div_value 1 (none, and no index 1)."""
    scale = math.sqrt(hidden)
    if "word_emb.weight.data" in source or not source.count("word_emb.tail."):
        places = [("word_emb.weight.data", 2, 0), ("criterion.project.weight.data", 2, 0), ("criterion.project.bias.data", 1, 0)]
        vocab = source.size("the size of the vocabulary", places)
        settings.agree("cutoffs", [], "the file has one vocabulary matrix")
        settings.used.add("div_value")
        inputs = InputRows(source.take("word_emb.weight.data", (vocab, hidden)))
        bias = source.take("criterion.project.bias.data", (vocab,))
        return SourceVocabulary([inputs], [OutputRows(source.take("criterion.project.weight.data", (vocab, hidden)), bias)], None, scale)

    clusters = ["shortlist", *(f"tail.{index}" for index in range(source.count("word_emb.tail.")))]
    projected = any(f"{side}.{name}.1.weight.data" in source for side in ("word_emb", "criterion") for name in clusters)
    shapes = [_shape(source, name, hidden, projected) for name in clusters]
    settings.agree("cutoffs", list(accumulate(size for size, _ in shapes[:-1])), "the clusters of the file")
    _check_div_value(settings, hidden, [width for _, width in shapes])

    inputs_read, outputs = [], []
    for name, (size, width) in zip(clusters, shapes, strict=True):
        rows = source.take(f"word_emb.{name}.0.weight.data", (size, width))
        inputs_read.append(InputRows(rows, source.take(f"word_emb.{name}.1.weight.data", (hidden, width)) if projected else None))
        place = f"criterion.{name}.{1 if projected else 0}"
        rows = source.take(f"{place}.weight.data", (size, width))
        projection = _projection(source, settings, name, inputs_read[-1].projection, problems) if projected else None
        outputs.append(OutputRows(rows, source.take(f"{place}.bias.data", (size,)), projection))
    tails = len(clusters) - 1
    entries = ClusterEntries(
        source.take("criterion.cluster.weight.data", (tails, hidden)),
        source.take("criterion.cluster.bias.data", (tails,)),
        order="ascending",
        cluster_input="hidden",
    )
    return SourceVocabulary(inputs_read, outputs, entries, scale)


def _shape(source: SourceTensors, cluster: str, hidden: int, projected: bool) -> tuple[int, int]:
    """Words and width of a cluster, by the vote of its tensors on both sides."""
    embedding, output = f"word_emb.{cluster}.", f"criterion.{cluster}.{1 if projected else 0}."
    sizes = [(f"{embedding}0.weight.data", 2, 0), (f"{output}weight.data", 2, 0), (f"{output}bias.data", 1, 0)]
    size = source.size(f"the words of word_emb.{cluster}", sizes)
    if not projected:
        return size, hidden
    widths = [(f"{embedding}0.weight.data", 2, 1), (f"{embedding}1.weight.data", 2, 1), (f"{output}weight.data", 2, 1)]
    return size, source.size(f"the width of word_emb.{cluster}", widths)


def _projection(
    source: SourceTensors, settings: Settings, cluster: str, of_input: np.ndarray | None, problems: list[Problem]
) -> np.ndarray:
    """The output projection as [hidden, width].

    The shortlist's is untied and stored [width, hidden]. A tail's is stored [hidden, width] when it is the input's own, else
    [width, hidden]: the shape tells; a square one is the input's if it equals it, otherwise as tie_proj says.
    """
    assert of_input is not None
    name = f"criterion.{cluster}.0.weight.data"
    hidden, width = of_input.shape
    if cluster == "shortlist":
        return source.take(name, (width, hidden)).T
    if hidden != width:
        as_input = name in source and source.shape(name, 2) == (hidden, width)
        return source.take(name, (hidden, width)) if as_input else source.take(name, (width, hidden)).T
    square = source.take(name, (hidden, width))
    if same(square, of_input):
        return square
    if not settings.has("tie_proj"):
        expected = "the input's own projection, or tie_proj in the configuration to say how a square one is stored"
        problems.append(Problem(name, expected, "another square matrix"))
        return square
    return square if settings.boolean("tie_proj") else square.T


def _check_div_value(settings: Settings, hidden: int, widths: list[int]) -> None:
    """Widths are int(hidden / div_value ** cluster)."""
    div_value = settings.value("div_value")
    if div_value is None:
        return
    if isinstance(div_value, bool) or not isinstance(div_value, int) or not 1 <= div_value <= hidden:
        settings.problem("div_value", f"an integer from 1 to {hidden}", repr(div_value)[:60])
        return
    expected = [int(hidden / div_value**index) for index in range(len(widths))]
    if expected != widths:
        settings.problem("div_value", f"one that gives the clusters' widths {widths}", f"{div_value}, which gives {expected}")
