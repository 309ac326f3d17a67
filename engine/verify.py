"""Two models on the same tokens: the difference after every layer, of the log-probabilities and of the likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.api import Model
from engine.errors import InputError, Problem

if TYPE_CHECKING:
    from rich.console import Console

MOST_TOKENS = 4096  # of a text; what holds for so many holds for the rest


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

    def print(self, tolerance: float, console: Console | None = None) -> None:
        """Write the table of differences and the verdict."""
        from rich.console import Console
        from rich.table import Table

        console = console or Console()
        table = Table("after", "max |difference|")
        for index, difference in enumerate(self.layers):
            table.add_row("embedding" if index == 0 else f"layer {index - 1}", f"{difference:.2e}")
        table.add_row("log-probabilities", f"{self.log_probs:.2e}")
        console.print(table)
        verdict = "within" if self.within(tolerance) else "BEYOND"
        console.print(f"nll per token {self.nll:+.2e} on {self.tokens} tokens; {verdict} {tolerance:g}", highlight=False)


def sample_ids(model: Model, *, rows: int = 2, seed: int = 0) -> np.ndarray:
    """Random tokens [rows, T], long enough that every ring wraps: a little over twice the longest reach, at most 1,024."""
    reach = max(layer.attention.reach or 1 for layer in model.spec.layers)
    return np.random.default_rng(seed).integers(0, model.spec.vocab, (rows, min(2 * reach + 3, 1024)))


def compare(model: Model, reference: Model, ids: Sequence[np.ndarray] | np.ndarray) -> Comparison:
    """Run both over each row of ids (at least two tokens) from the start of a stream.

    Raises InputError for rows that are too short, or where the two models are not comparable.
    """
    if problems := _differences_in_kind(model, reference):
        raise InputError(problems, hint="a model is compared with the source it was converted from")
    if short := [index for index, row in enumerate(ids) if len(row) < 2]:
        raise InputError(Problem(f"ids[{short[0]}]", "at least two tokens", str(len(ids[short[0]]))))
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
    tokens = sum(len(row) for row in ids)
    return Comparison(tuple(layers.tolist()), log_probs, float(np.mean(np.concatenate(nll), dtype=np.float64)), tokens)


def _differences_in_kind(model: Model, reference: Model) -> list[Problem]:
    ours, theirs = ({"vocab": s.vocab, "hidden": s.hidden, "layers": len(s.layers)} for s in (model.spec, reference.spec))
    return [Problem(name, f"{theirs[name]}, as the reference has", str(ours[name])) for name in ours if ours[name] != theirs[name]]


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    worst = float(np.max(np.abs(a.astype(np.float64) - b)))
    return worst if np.isfinite(worst) else float("inf")
