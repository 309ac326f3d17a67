"""Sequences → padded batches of tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from engine.prune.data.pieces import Example


@dataclass(frozen=True)
class Batch:
    """B sequences of at most T tokens, with W words in all.

    ids [B, T], 0 behind a sequence's end; seen [B, T] bool; row, column [W]: each word's first piece; labels [W]; examples: their numbers.
    """

    ids: torch.Tensor
    seen: torch.Tensor
    row: torch.Tensor
    column: torch.Tensor
    labels: torch.Tensor
    examples: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return int(self.seen.sum())


def batches(examples: Sequence[Example], size: int, device: torch.device, order: Sequence[int] | None = None) -> Iterator[Batch]:
    """`size` sequences at a time, in `order` or in their own; the last batch may be smaller."""
    order = range(len(examples)) if order is None else order
    for start in range(0, len(order), size):
        yield collate(examples, order[start : start + size], device)


def by_length(examples: Sequence[Example]) -> list[int]:
    """An order that puts sequences of like length together, longest first: for evaluation, where the order changes nothing."""
    return sorted(range(len(examples)), key=lambda index: -len(examples[index].ids))


def collate(examples: Sequence[Example], numbers: Sequence[int], device: torch.device) -> Batch:
    chosen = [examples[number] for number in numbers]
    length = max(len(example.ids) for example in chosen)
    ids = torch.tensor([[*example.ids, *[0] * (length - len(example.ids))] for example in chosen])
    lengths = torch.tensor([len(example.ids) for example in chosen])
    return Batch(
        ids=ids.to(device),
        seen=(torch.arange(length) < lengths[:, None]).to(device),
        row=torch.tensor([row for row, example in enumerate(chosen) for _ in example.first]).to(device),
        column=torch.tensor([column for example in chosen for column in example.first]).to(device),
        labels=torch.tensor([label for example in chosen for label in example.labels]).to(device),
        examples=tuple(numbers),
    )
