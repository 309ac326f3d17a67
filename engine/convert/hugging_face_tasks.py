"""Which task a Hugging Face checkpoint is for, and the tensors of its head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import numpy as np

from engine.convert.base import Settings, SourceTensors
from engine.convert.hugging_face_names import ENDINGS, Family
from engine.spec import Activation, Labels, OutputCluster, Task, Vocabulary

Head = Vocabulary | Labels | None
Weights = dict[str, np.ndarray]

POOLER = "pooler.dense"
OTHER_HEADS = ("cls.seq_relationship.weight", "cls.seq_relationship.bias")  # next-sentence prediction, which nothing here asks for


def read_task(settings: Settings, source: SourceTensors) -> Task:
    """The option `task`, or what the architecture is called, or what the tensors of the head show."""
    tasks: dict[str, Task] = {name: name for name in get_args(Task) if name != "causal_lm"}
    asked = settings.value("task")
    if asked is not None:
        if not isinstance(asked, str) or asked not in tasks:
            settings.problem("option task", " or ".join(tasks), repr(asked)[:60])
            return "hidden"
        return tasks[asked]
    architectures = settings.value("architectures")
    if not architectures:
        return _task_of_tensors(source)
    name = architectures[0] if isinstance(architectures, list) and isinstance(architectures[0], str) else ""
    found: dict[str, Task] = {ending: tasks[task] for ending, task in ENDINGS.items() if name.endswith(ending)}
    if not found:
        settings.problem("config architectures", f"a name that ends with {', '.join(ENDINGS)}", repr(architectures)[:80])
        return "hidden"
    return found[max(found, key=len)]


def _task_of_tensors(source: SourceTensors) -> Task:
    if "qa_outputs.weight" in source:
        return "token_classification"
    if "classifier.weight" in source:
        pooled = any(name in source for name in (f"bert.{POOLER}.weight", f"{POOLER}.weight", "pre_classifier.weight"))
        return "sequence_classification" if pooled else "token_classification"
    if "classifier.out_proj.weight" in source:
        return "sequence_classification"
    vocabulary = ("cls.predictions.bias", "lm_head.bias", "vocab_projector.bias", "cls.predictions.transform.dense.weight")
    return "masked_lm" if any(name in source for name in vocabulary) else "hidden"


def read_head(
    task: Task, family: Family, prefix: str, source: SourceTensors, settings: Settings, words: np.ndarray, activation: Activation
) -> tuple[Head, Weights]:
    """The spec and tensors of the task's head. prefix: of the model's own tensors; words [vocab, hidden]: its embedding."""
    hidden = words.shape[1]
    _ignore_others(task, family, prefix, source)
    if task == "masked_lm":
        return _masked(family, source, settings, words, activation)
    if task == "token_classification":
        return _labels(source, settings, "qa_outputs" if "qa_outputs.weight" in source else "classifier", hidden, Labels(1, False))
    if task == "sequence_classification":
        if family.prefix == "bert":
            return _labels(source, settings, "classifier", hidden, Labels(1, True, "tanh"), prefix + POOLER)
        if family.prefix == "roberta":
            return _labels(source, settings, "classifier.out_proj", hidden, Labels(1, True, "tanh"), "classifier.dense")
        return _labels(source, settings, "classifier", hidden, Labels(1, True, "relu"), "pre_classifier")
    return None, {}


def _ignore_others(task: Task, family: Family, prefix: str, source: SourceTensors) -> None:
    """A pooler nothing reads, and the second head of a pre-training checkpoint."""
    pooler_read = task == "sequence_classification" and family.prefix == "bert"
    for part in () if pooler_read else ("weight", "bias"):
        source.ignore(f"{prefix}{POOLER}.{part}")
    if task == "masked_lm":
        for name in OTHER_HEADS:
            source.ignore(name)


def _labels(
    source: SourceTensors, settings: Settings, name: str, hidden: int, kind: Labels, pooler: str | None = None
) -> tuple[Labels, Weights]:
    weights: Weights = {}
    if pooler is not None:
        weights["head.pooler"] = source.take(f"{pooler}.weight", (hidden, hidden))
        weights["head.pooler_bias"] = source.take(f"{pooler}.bias", (hidden,))
    labels = source.shape(f"{name}.weight", 2)[0]
    names = settings.value("id2label")
    if name == "classifier" or name.startswith("classifier."):
        settings.agree("num_labels", labels, f"rows of {name}.weight")
        if isinstance(names, Mapping) and len(names) != labels and source.sound(f"{name}.weight"):
            settings.problem("config id2label", f"{labels} labels, the rows of {name}.weight", str(len(names)))
    weights["head.labels"] = source.take(f"{name}.weight", (labels, hidden))
    weights["head.labels_bias"] = source.take(f"{name}.bias", (labels,))
    return Labels(labels, kind.pooled, kind.pooler), weights


def _masked(
    family: Family, source: SourceTensors, settings: Settings, words: np.ndarray, activation: Activation
) -> tuple[Vocabulary, Weights]:
    """dense, activation, norm, then the words' rows and a bias; XLM-R's activation is its own."""
    vocab, hidden = words.shape
    dense, norm, bias, decoder = family.masked
    weights = {
        "head.transform": source.take(f"{dense}.weight", (hidden, hidden)),
        "head.transform_bias": source.take(f"{dense}.bias", (hidden,)),
        "head.transform_norm": source.take(f"{norm}.weight", (hidden,)),
        "head.transform_norm_bias": source.take(f"{norm}.bias", (hidden,)),
    }
    tied = settings.boolean("tie_word_embeddings", True)
    if not tied:
        weights["head.0"] = source.take(f"{decoder}.weight", (vocab, hidden))
    source.ignore(f"{decoder}.weight")  # a tied one stands in .bin files again
    weights["head.0.bias"] = source.take(bias if bias in source else f"{decoder}.bias", (vocab,))
    source.ignore(f"{decoder}.bias")
    cluster = OutputCluster(vocab, hidden, projected=False, tied=tied, tied_projection=False)
    return Vocabulary((cluster,), "ascending", "hidden", transform=family.masked_activation or activation), weights
