"""A task as a command names it: files, format, labels → examples for a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from engine.checkpoint import Checkpoint
from engine.errors import BackendUnavailable, InputError, Problem
from engine.prune.data.labels import LabelSet, labels_of_model
from engine.prune.data.pieces import Example, Pieces
from engine.prune.data.read import read_sentences
from engine.prune.data.sentences import Sentence
from engine.spec import Labels, ModelSpec


@dataclass(frozen=True)
class DataOptions:
    """How files are read: format, the first `limit` sentences of each, whether too long ones go on in another sequence, encoding."""

    format: str = "auto"
    limit: int | None = None
    cut_long: bool = False
    encoding: str = "utf-8"


@dataclass(frozen=True)
class Data:
    """Sentences with their examples; numbers: the label numbers of each sentence's words."""

    sentences: list[Sentence]
    numbers: list[list[int]]
    examples: list[Example]


def prepare(sentences: Sequence[Sentence], labels: LabelSet, checkpoint: Checkpoint, options: DataOptions) -> Data:
    """Raises InputError for labels not of the set and sentences too long, each with file and line."""
    numbers = labels.encode(sentences)
    pieces = Pieces(checkpoint.tokenizer)
    examples = pieces.examples(sentences, numbers, checkpoint.spec.embedding.most_tokens, cut=options.cut_long)
    _check_ids(examples, checkpoint.spec)
    return Data(list(sentences), numbers, examples)


def read_data(paths: Sequence[str], labels: LabelSet, checkpoint: Checkpoint, options: DataOptions) -> Data:
    return prepare(read_sentences(paths, options.format, options.limit, options.encoding), labels, checkpoint, options)


def model_labels(checkpoint: Checkpoint) -> LabelSet:
    """The labels a tagging model was trained on; raises InputError where it has no such head or nothing names its labels."""
    head = checkpoint.spec.head
    if not isinstance(head, Labels) or head.pooled:
        hint = "fine-tune it first: `headcount prune trials` makes a tagging model from any encoder"
        raise InputError(Problem("model", "a head of token labels", f"task {checkpoint.spec.task}"), hint=hint)
    labels = labels_of_model(checkpoint.provenance, head.labels)
    if labels is None:
        raise InputError(Problem("model", f"names of its {head.labels} labels", "none"), hint="add id2label to the source's config.json")
    return labels


def device_of(name: str) -> torch.device:
    """auto is cuda where PyTorch sees one, else cpu; raises BackendUnavailable."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except Exception as error:  # PyTorch raises RuntimeError, AssertionError and more
        raise BackendUnavailable(Problem("device", "auto, cpu, cuda or cuda:N that PyTorch can use here", f"{name!r}: {error}")) from None
    return device


def describe(options: DataOptions) -> dict[str, Any]:
    encoding = {} if options.encoding == DataOptions.encoding else {"encoding": options.encoding}  # a run of before there was one goes on
    return {"format": options.format, "limit": options.limit, "cut_long": options.cut_long, **encoding}


def _check_ids(examples: Sequence[Example], spec: ModelSpec) -> None:
    most = max(max(example.ids) for example in examples)
    if most >= spec.vocab:
        raise InputError(Problem("tokenizer.json", f"token ids below {spec.vocab}, the model's vocabulary", str(most)))
