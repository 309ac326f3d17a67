"""Two models on the same tokens: the difference after every layer, of the log-probabilities and of the likelihood."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from engine.api import Model
from engine.errors import InputError, Problem


@dataclass(frozen=True)
class Comparison:
    """Largest absolute differences: of the residual stream after the embedding and after each layer, and of log p(next)."""

    layers: tuple[float, ...]
    log_probs: float
    nll: float  # mean negative log-likelihood per token, the model's minus the reference's
    tokens: int

    def within(self, tolerance: float) -> bool:
        """Whether the log-probabilities agree; a NaN never does."""
        return self.log_probs <= tolerance

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def sample_ids(model: Model, *, rows: int = 2, seed: int = 0) -> np.ndarray:
    """Random tokens [rows, T], long enough that every ring wraps: a little over twice the longest reach, at most 1,024."""
    reach = max(layer.attention.reach or 1 for layer in model.spec.layers)
    return np.random.default_rng(seed).integers(0, model.spec.vocab, (rows, min(2 * reach + 3, 1024)))


def compare(model: Model, reference: Model, ids: np.ndarray) -> Comparison:
    """Run both over ids [B, T], each row from the start of a stream; raises InputError where their shapes are not comparable."""
    mine, other = _family(model), _family(reference)
    if mine != other:
        raise InputError(Problem("models", f"one vocabulary, hidden size and number of layers {other}", str(mine)))
    layers = np.zeros(len(model.spec.layers) + 1)
    log_probs, nll = 0.0, []
    for row in ids:
        done = 0
        for (hidden, found), (expected_hidden, expected) in zip(model.trace(row), reference.trace(row), strict=True):
            layers = np.maximum(layers, [_difference(a, b) for a, b in zip(hidden, expected_hidden, strict=True)])
            log_probs = max(log_probs, _difference(found, expected))
            targets = row[done + 1 : done + 1 + len(found)]  # the last row of the last part has none
            steps = np.arange(len(targets))
            nll.append(expected[steps, targets] - found[steps, targets])
            done += len(found)
    return Comparison(tuple(layers.tolist()), log_probs, float(np.mean(np.concatenate(nll))), int(ids.size))


def _family(model: Model) -> tuple[int, int, int]:
    return model.spec.vocab, model.spec.hidden, len(model.spec.layers)


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    worst = float(np.max(np.abs(a.astype(np.float64) - b)))
    return worst if np.isfinite(worst) else float("inf")
