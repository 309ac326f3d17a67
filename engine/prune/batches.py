"""Sequences → packed batches of tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from engine.prune.data.pieces import Example


@dataclass(frozen=True)
class TaggedBatch:
    """B sequences of at most T tokens, with W words in all.

    ids [tokens], sequence after sequence without padding; seen [B, T] bool: where they stand in a padded batch, row by row;
    place [tokens]: of each in its sequence; word [W]: the token that is each word's first piece; row [W]: its sequence; labels [W];
    examples: the numbers of the sequences.
    """

    ids: torch.Tensor
    seen: torch.Tensor
    place: torch.Tensor
    word: torch.Tensor
    row: torch.Tensor
    labels: torch.Tensor
    examples: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return len(self.ids)


def batches(examples: Sequence[Example], size: int, device: torch.device, order: Sequence[int] | None = None) -> Iterator[TaggedBatch]:
    """`size` sequences at a time, in `order` or in their own; the last batch may be smaller."""
    order = range(len(examples)) if order is None else order
    for start in range(0, len(order), size):
        yield collate(examples, order[start : start + size], device)


def by_length(examples: Sequence[Example]) -> list[int]:
    """An order that puts sequences of like length together, longest first: for evaluation, where the order changes nothing."""
    return sorted(range(len(examples)), key=lambda index: -len(examples[index].ids))


def collate(examples: Sequence[Example], numbers: Sequence[int], device: torch.device) -> TaggedBatch:
    chosen = [examples[number] for number in numbers]
    lengths = [len(example.ids) for example in chosen]
    starts = [sum(lengths[:row]) for row in range(len(chosen))]
    return TaggedBatch(
        ids=torch.tensor([token for example in chosen for token in example.ids]).to(device),
        seen=(torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).to(device),
        place=torch.tensor([place for length in lengths for place in range(length)]).to(device),
        word=torch.tensor([start + column for start, example in zip(starts, chosen, strict=True) for column in example.first]).to(device),
        row=torch.tensor([row for row, example in enumerate(chosen) for _ in example.first]).to(device),
        labels=torch.tensor([label for example in chosen for label in example.labels]).to(device),
        examples=tuple(numbers),
    )
