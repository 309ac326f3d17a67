"""How well an encoder labels sentences."""

from __future__ import annotations

import torch

from engine.prune.batches import batches, by_length
from engine.prune.data.labels import LabelSet
from engine.prune.data.metrics import measure
from engine.prune.encoder import Encoder
from engine.prune.task import Data


def evaluate(encoder: Encoder, data: Data, labels: LabelSet, batch: int = 64) -> dict[str, float]:
    """engine.prune.data.metrics.measure over the whole sentences, also those that are several sequences."""
    found: dict[int, list[int]] = {}
    with torch.no_grad():
        for group in batches(data.examples, batch, encoder.device, by_length(data.examples)):
            best = encoder.logits(group).argmax(-1).tolist()
            for row, number in zip(group.row.tolist(), best, strict=True):
                found.setdefault(group.examples[row], []).append(number)
    whole: list[list[int]] = [[] for _ in data.sentences]
    for index, example in enumerate(data.examples):  # parts of a sentence stand in their order
        whole[example.sentence] += found[index]
    return measure(labels, data.numbers, whole)
