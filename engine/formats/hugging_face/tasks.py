"""Which task a Hugging Face checkpoint is for, and the tensors of its head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import numpy as np

from engine.formats.base import Settings, SourceTensors
from engine.formats.hugging_face.family import Family
from engine.spec import Activation, Labels, OutputCluster, Task, Vocabulary

Head = Vocabulary | Labels | None
Weights = dict[str, np.ndarray]

POOLER = "pooler.dense"
DISCRIMINATOR = "discriminator_predictions"  # ELECTRA's own head, which nothing here asks for
ENDINGS: dict[str, Task] = {  # what the name of an encoder's class ends with → task; the longest ending that fits counts
    "Model": "hidden",
    "ForMaskedLM": "masked_lm",
    "ForPreTraining": "masked_lm",
    "ForTokenClassification": "token_classification",
    "ForQuestionAnswering": "token_classification",
    "ForSequenceClassification": "sequence_classification",
}
TAG_PREFIXES = ("B-", "I-", "E-", "S-", "L-", "U-")  # of words inside a span: BIO, BIOES, BILOU
TAGGING = ("ner", "pos", "chunk", "chunking", "udpos", "panx", "conll2003", "token-classification", "token_classification")
OTHER_HEADS = ("cls.seq_relationship.weight", "cls.seq_relationship.bias")  # next-sentence prediction, which nothing here asks for


def read_task(family: Family, source: SourceTensors, settings: Settings, notes: list[str]) -> Task:
    """The option `task`, or what the architecture is called, or what the tensors of the head show."""
    if family.discriminates and any(name.startswith(f"{DISCRIMINATOR}.") for name in source.names()):
        notes.append(f"{DISCRIMINATOR} not read: the head that tells replaced tokens")
    tasks: dict[str, Task] = {name: name for name in get_args(Task) if name != "causal_lm"}
    asked, architectures = settings.value("task"), settings.value("architectures")
    if asked is not None:
        if not isinstance(asked, str) or asked not in tasks:
            settings.problem("option task", " or ".join(tasks), repr(asked)[:60])
            return "hidden"
        _require_head(family, tasks[asked], source, settings, "option task", asked)
        return tasks[asked]
    if not architectures:
        task, told_by = _guessed(source, settings)
        notes.append(f"task {task}: guessed by {told_by}; -o task=NAME (task=) says another")
        return task
    name = architectures[0] if isinstance(architectures, list) and isinstance(architectures[0], str) else ""
    found = {ending: task for ending, task in ENDINGS.items() if name.endswith(ending)}
    if not found:
        settings.problem("config architectures", f"a name that ends with {', '.join(ENDINGS)}", repr(architectures)[:80])
        return "hidden"
    ending = max(found, key=len)
    task = "hidden" if family.discriminates and ending == "ForPreTraining" else found[ending]
    _require_head(family, task, source, settings, "config architectures", name)
    return task


def _require_head(family: Family, task: Task, source: SourceTensors, settings: Settings, where: str, asked: str) -> None:
    """One problem where nothing of the task's head is there, instead of one for each of its tensors."""
    dense, labels, _ = family.pooled
    heads: dict[Task, tuple[str, ...]] = {
        "masked_lm": (family.masked[0],),
        "token_classification": ("classifier", "qa_outputs"),
        "sequence_classification": (labels, dense, dense.removeprefix("bert.")),
    }
    names = [f"{name}.weight" for name in heads.get(task, ())]
    if names and not any(name in source for name in names):
        there = " or ".join(dict.fromkeys((_task_of_tensors(source), "hidden")))
        settings.problem(where, f"task {there}: the file has no {names[0]}", repr(asked))


def _guessed(source: SourceTensors, settings: Settings) -> tuple[Task, str]:
    """The task and what tells it. A classifier beside a pooler is of words where its labels or its data say so: old files have both."""
    task = _task_of_tensors(source)
    if task != "sequence_classification" or "classifier.weight" not in source:
        return task, "the tensors"
    names, data = settings.value("id2label"), settings.value("finetuning_task")
    labels = [str(name) for name in names.values()] if isinstance(names, Mapping) else []
    if labels and all(label == "O" or label[:2] in TAG_PREFIXES for label in labels) and any(label != "O" for label in labels):
        return "token_classification", "the labels of id2label"
    if isinstance(data, str) and data.lower() in TAGGING:
        return "token_classification", f"finetuning_task {data!r}"
    return task, "the tensors, a classifier beside a pooler"


def _task_of_tensors(source: SourceTensors) -> Task:
    if "qa_outputs.weight" in source:
        return "token_classification"
    if "classifier.weight" in source:
        pooled = any(name in source for name in (f"bert.{POOLER}.weight", f"{POOLER}.weight", "pre_classifier.weight"))
        return "sequence_classification" if pooled else "token_classification"
    if "classifier.out_proj.weight" in source:
        return "sequence_classification"
    biases = ("cls.predictions.bias", "lm_head.bias", "vocab_projector.bias", "generator_lm_head.bias")
    vocabulary = any(name in source for name in (*biases, "cls.predictions.transform.dense.weight"))
    return "masked_lm" if vocabulary else "hidden"


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
        dense, labels, activated = family.pooled
        return _labels(source, settings, labels, hidden, Labels(1, True, activated), dense if prefix else dense.removeprefix("bert."))
    return None, {}


def _ignore_others(task: Task, family: Family, prefix: str, source: SourceTensors) -> None:
    """A pooler nothing reads, and what pre-training has beside the words it predicts."""
    pooler_read = task == "sequence_classification" and family.prefix == "bert"
    for part in () if pooler_read else ("weight", "bias"):
        source.ignore(f"{prefix}{POOLER}.{part}")
    if task == "masked_lm":
        for name in OTHER_HEADS:
            source.ignore(name)
    for part in ("dense", "dense_prediction") if family.discriminates else ():
        source.ignore(f"{DISCRIMINATOR}.{part}.weight")
        source.ignore(f"{DISCRIMINATOR}.{part}.bias")


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
        if isinstance(names, Mapping) and len(names) == labels:  # which the library goes by
            if settings.value("num_labels") not in (None, labels):
                settings.note(f"num_labels {settings.value('num_labels')!r} of the configuration is not used: id2label has {labels}")
        else:
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
    tied = is_tied(source, settings, f"{decoder}.weight", words)
    if not tied:
        weights["head.0"] = source.take(f"{decoder}.weight", (vocab, hidden))
    weights["head.0.bias"] = _decoder_bias(source, settings, bias, f"{decoder}.bias", vocab, tied)
    cluster = OutputCluster(vocab, hidden, projected=False, tied=tied, tied_projection=False)
    return Vocabulary((cluster,), "ascending", "hidden", transform=family.masked_activation or activation), weights


def is_tied(source: SourceTensors, settings: Settings, decoder: str, words: np.ndarray) -> bool:
    """Whether the output rows are the words' own, as the setting says; a stored `decoder` that differs from them contradicts it."""
    if not settings.boolean("tie_word_embeddings", True):
        return False
    stored = source.optional(decoder, words.shape)  # .bin files hold the words again
    if stored is not None and source.sound(decoder) and not np.array_equal(stored, words):
        expected = f"false, for {decoder} differs from the word embeddings: transformers 4 leaves it unused, 5 uses it"
        settings.problem("config tie_word_embeddings", expected, "true")
    return True


def _decoder_bias(source: SourceTensors, settings: Settings, shared: str, own: str, vocab: int, tied: bool) -> np.ndarray:
    """One bias by two names; transformers 5 trains and stores both where the words are not tied, and adds the decoder's own."""
    if own == shared or own not in source:
        return source.take(shared, (vocab,))
    bias, other = source.take(own, (vocab,)), source.optional(shared, (vocab,))
    if tied and other is not None and source.sound(own) and source.sound(shared) and not np.array_equal(bias, other):
        settings.problem(own, f"the numbers of {shared}, which it is tied to", "others")
    return bias
