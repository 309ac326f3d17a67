"""How well an encoder labels sentences."""

from __future__ import annotations

import torch

from engine.errors import EngineError, Problem
from engine.prune.batches import batches, by_length
from engine.prune.data.labels import LabelSet
from engine.prune.data.metrics import measure
from engine.prune.encoder import TaggingEncoder
from engine.prune.task import Data


def evaluate(encoder: TaggingEncoder, data: Data, labels: LabelSet, batch: int = 64) -> dict[str, float]:
    """engine.prune.data.metrics.measure over the whole sentences, also those that are several sequences.

    Raises EngineError where the model gives no numbers.
    """
    found: dict[int, list[int]] = {}
    with torch.no_grad():
        for group in batches(data.examples, batch, encoder.device, by_length(data.examples)):
            logits = encoder.logits(group)  # [words, labels]
            if not torch.isfinite(logits).all():
                hint = "the weights or their products overflow: train with a lower learning rate"
                raise EngineError(Problem("logits of the model", "finite numbers", "NaN or infinity"), hint=hint)
            for row, number in zip(group.row.tolist(), logits.argmax(-1).tolist(), strict=True):
                found.setdefault(group.examples[row], []).append(number)
    whole: list[list[int]] = [[] for _ in data.sentences]
    for index, example in enumerate(data.examples):  # parts of a sentence stand in their order
        whole[example.sentence] += found[index]
    return measure(labels, data.numbers, whole)
