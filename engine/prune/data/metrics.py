"""How good labels are: micro-averaged F1 over spans as seqeval counts them, accuracy and F1 over words."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from engine.errors import EngineError
from engine.prune.data.labels import LabelSet
from engine.prune.data.tags import iob2

Numbers = Sequence[Sequence[int]]  # label numbers of the words of each sentence


def measure(labels: LabelSet, expected: Numbers, found: Numbers) -> dict[str, float]:
    """`score` is what models are compared by: micro-F1 of spans (precision, recall beside it), or accuracy of words, with macro_f1.

    Over one class a word, micro-F1 is accuracy, so S2's F1 of parts of speech (arXiv 2108.08375) is `score`. In [0, 1].
    Raises EngineError where spans are asked for and seqeval is not installed.
    """
    if labels.spans:
        return _spans(labels, expected, found)
    pairs = [pair for words in zip(expected, found, strict=True) for pair in zip(*words, strict=True)]
    accuracy = sum(e == f for e, f in pairs) / len(pairs)
    f1 = [_class_f1(pairs, label) for label in sorted({e for e, _ in pairs} | {f for _, f in pairs})]
    return {"score": accuracy, "accuracy": accuracy, "macro_f1": sum(f1) / len(f1)}


def _class_f1(pairs: Sequence[tuple[int, int]], label: int) -> float:
    both = sum(e == f == label for e, f in pairs)
    either = sum((e == label) + (f == label) for e, f in pairs)
    return 2 * both / either


def _spans(labels: LabelSet, expected: Numbers, found: Numbers) -> dict[str, float]:
    try:
        from seqeval.metrics import f1_score, precision_score, recall_score  # type: ignore[import-untyped]
    except ImportError:
        raise EngineError("seqeval is needed to score spans and is not installed", hint="pip install 'headcount[prune]'") from None
    truth, guess = ([iob2([labels.names[number] for number in words]) for words in numbers] for numbers in (expected, found))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a model that marks nothing has no precision: 0
        f1, precision, recall = (float(of(truth, guess)) for of in (f1_score, precision_score, recall_score))
    right = sum(e == f for words in zip(expected, found, strict=True) for e, f in zip(*words, strict=True))
    return {"score": f1, "precision": precision, "recall": recall, "accuracy": right / sum(map(len, expected))}
