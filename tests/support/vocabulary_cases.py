"""The output side of the vocabulary in every size through the native module, on every instruction set here, against float64.

Plain and adaptive softmax: whole log-probabilities, a target's alone, the embedding; outputs filled with NaN before each call. Weights and
the rule as in layer_cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from engine_kernels.native import NativeModel
from engine_kernels.shapes import ClusterShape, EmbeddingShape, HeadShape
from engine_kernels.testing import EPS, difference, tolerance
from tests.oracle.vocabulary import log_softmax
from tests.support.int8_weights import rounded
from tests.support.layer_cases import ROUNDS_ROWS, SIZES, as_bfloat16, forced, share

VOCABULARY_SIZES: dict[str, tuple[Any, ...]] = {
    "rows": SIZES["rows"],
    "hidden": (1, 15, 16, 33, 64, 512),
    "words": (1, 2, 16, 17, 513, 1000),
    "tail": (0, 1, 17, 600),
    "tied": (False, True),
    "dtype": SIZES["dtype"],
    "logits": ("usual", "large", "equal"),
}


@dataclass(frozen=True)
class VocabularyCase:
    """words: of the first cluster.  tail: of the second, 0 = none.  tied: the first cluster's rows are the embedding's."""

    rows: int
    hidden: int
    words: int
    tail: int
    tied: bool
    dtype: str
    logits: str
    seed: int = 0


def full() -> list[dict[str, Any]]:
    """Every combination, the longest row count standing for the shorter ones as in layer_cases."""
    sizes = VOCABULARY_SIZES | {"rows": (max(SIZES["rows"]),)}
    return [dict(zip(sizes, values, strict=True)) for values in product(*sizes.values())]


def full_case(number: int) -> VocabularyCase:
    return VocabularyCase(**full()[number], seed=number)


def drawn(count: int) -> list[VocabularyCase]:
    cases = []
    for seed in range(count):
        rng = np.random.default_rng([seed, 12])
        values = {name: options[int(rng.integers(len(options)))] for name, options in VOCABULARY_SIZES.items()}
        if values["rows"] * values["hidden"] * (values["words"] + values["tail"]) > 1e7:
            values["rows"] = int(rng.integers(1, 20))
        cases.append(VocabularyCase(**values, seed=seed))
    return cases


def run_vocabulary(case: VocabularyCase, names: Sequence[str], row_counts: Sequence[int] = ()) -> dict[str, float]:
    """Instruction set and call → largest difference as a share of what is allowed; NaN where one was found."""
    rng = np.random.default_rng([case.seed, 13])
    spread = {"usual": 2.0, "large": 1e4, "equal": 0.0}[case.logits] / np.sqrt(case.hidden)
    arrays = {"embedding.0": rng.standard_normal((case.words, case.hidden)) * (1.0 if case.logits != "large" else spread)}
    arrays["head.0"] = arrays["embedding.0"] if case.tied else rng.standard_normal((case.words, case.hidden)) * spread
    if case.tail:
        arrays |= {"embedding.1": rng.standard_normal((case.tail, case.hidden)), "head.clusters": rng.standard_normal((1, case.hidden))}
        arrays["head.1"] = rng.standard_normal((case.tail, case.hidden)) * spread
    arrays = {name: w.astype(np.float32) for name, w in arrays.items()}
    if case.tied:
        arrays["head.0"] = arrays["embedding.0"]
    held = _stored(case, arrays)
    hidden = rng.standard_normal((case.rows, case.hidden)).astype(np.float32)
    targets = rng.integers(-1, case.words + case.tail, case.rows)
    exact = _log_probs(held, hidden.astype(np.float64))
    ratios: dict[str, float] = {}
    for name in names:
        rule = "bfloat16" if (name, case.dtype) in ROUNDS_ROWS else "float32"
        allowed = _allowed(case, held, hidden, exact, rule)
        model = _model(case, arrays, name)
        for rows in sorted({r for r in row_counts if r < case.rows} | {case.rows}):
            for how, gap in _gaps(model, case, held, hidden[:rows], targets[:rows], exact[:rows]).items():
                ratios[f"{name}, {how}"] = float(np.max([ratios.get(f"{name}, {how}", 0.0), share(gap, allowed)]))
    return ratios


def _model(case: VocabularyCase, arrays: dict[str, np.ndarray], name: str) -> NativeModel:
    with forced(name):
        quantization = "int8" if case.dtype == "int8" else None
        model = NativeModel(case.hidden, "bfloat16" if case.dtype == "bfloat16" else "float32", 1, quantization)
    sizes = [case.words] + [case.tail] * (case.tail > 0)
    clusters = tuple(ClusterShape(i * case.words, size, case.hidden, False, case.words) for i, size in enumerate(sizes))
    head = (replace(clusters[0], tied=case.tied), *clusters[1:])
    model.set_head(HeadShape(head, clusters_read_hidden=True), {name: w for name, w in arrays.items() if name.startswith("head.")})
    model.set_embedding(EmbeddingShape(clusters), {name: w for name, w in arrays.items() if name.startswith("embedding.")})
    return model


def _stored(case: VocabularyCase, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the dtype keeps; int8 leaves the embedding and what is tied to it."""
    if case.dtype == "bfloat16":
        return {name: as_bfloat16(w) for name, w in arrays.items()}
    if case.dtype == "float32":
        return arrays
    exempt = ("embedding.0", "embedding.1", *(("head.0",) if case.tied else ()))
    return {name: w if name in exempt else rounded(w) for name, w in arrays.items()}


def _log_probs(held: dict[str, np.ndarray], hidden: np.ndarray) -> np.ndarray:
    """[rows, words + tail] in the dtype of hidden."""
    logits = [hidden @ held[name].astype(hidden.dtype).T for name in ("head.0", "head.clusters") if name in held]
    first = np.array([log_softmax(row) for row in np.concatenate(logits, axis=1)])
    if "head.1" not in held:
        return first
    tail = np.array([log_softmax(row) for row in hidden @ held["head.1"].astype(hidden.dtype).T])
    return np.concatenate((first[:, :-1], first[:, -1:] + tail), axis=1)


def _allowed(case: VocabularyCase, held: dict[str, np.ndarray], hidden: np.ndarray, exact: np.ndarray, rule: str) -> float:
    rng, step = np.random.default_rng([case.seed, 14]), (4 * EPS["float32"] if rule == "float32" else EPS["bfloat16"])
    moved = {name: w * (1 + rng.choice((-step, step), w.shape)).astype(np.float32) for name, w in held.items()}
    return tolerance(_log_probs(moved, hidden), exact, rule)


def _gaps(
    model: NativeModel, case: VocabularyCase, held: dict[str, np.ndarray], hidden: np.ndarray, targets: np.ndarray, exact: np.ndarray
) -> dict[str, float]:
    """Differences of whole log-probabilities and of the targets' alone; the embedding must give its own rows, exactly."""
    head = np.full((len(hidden), case.words + (case.tail > 0)), np.nan, np.float32)
    model._model.head_log_probs(hidden, head)
    found = head
    if case.tail:
        tail = np.full((len(hidden), case.tail), np.nan, np.float32)
        model._model.tail_log_probs(hidden, 1, tail)
        found = np.concatenate((head[:, :-1], head[:, -1:] + tail), axis=1)
    nll = np.full(len(hidden), 7, np.float32)
    model._model.target_nll(hidden, targets, nll)
    wanted = np.flatnonzero(targets >= 0)
    ids = np.concatenate((np.arange(case.words)[-5:], case.words + np.arange(case.tail)[-5:]))
    rows = np.full((len(ids), case.hidden), np.nan, np.float32)
    model._model.embed(ids, rows, None, None)
    table = np.concatenate([held[name] for name in ("embedding.0", "embedding.1") if name in held])
    right = np.array_equal(np.isnan(nll), targets < 0) and np.array_equal(rows, table[ids])
    gaps = {"log-probabilities": difference(found, exact)}
    gaps["targets"] = difference(nll[wanted], -exact[wanted, targets[wanted]]) if right else float("nan")
    return gaps
