"""Two models on the same tokens: the difference after every layer, of what they give, and of a language model's likelihood."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.errors import InputError, Problem
from engine.loading import Model

if TYPE_CHECKING:
    from rich.console import Console

OUTPUTS = {"log_probs": "log-probabilities", "logits": "logits", "hidden": "hidden states"}
MOST_TOKENS = 4096  # of a text; what holds for so many holds for the rest


@dataclass(frozen=True)
class Comparison:
    """Largest absolute differences: of the residual stream after the embedding and after each layer, and of what the model gives.

    log_probs: of log p(next), or for an encoder of its `output`, the logits or without a head the hidden states.
    nll: mean negative log-likelihood per token, the model's minus the reference's; None for an encoder.
    """

    layers: tuple[float, ...]
    log_probs: float
    nll: float | None
    tokens: int
    output: str = "log_probs"

    def within(self, tolerance: float) -> bool:
        """Whether the outputs agree; a NaN never does."""
        return self.log_probs <= tolerance

    def to_dict(self) -> dict[str, Any]:
        figures: dict[str, Any] = {"layers": self.layers, self.output: self.log_probs, "tokens": self.tokens}
        return figures if self.nll is None else {**figures, "nll": self.nll}

    def print(self, tolerance: float, console: Console | None = None) -> None:
        """Write the table of differences and the verdict."""
        from rich.console import Console
        from rich.table import Table

        console = console or Console()
        table = Table("after", "max |difference|")
        for index, difference in enumerate(self.layers):
            table.add_row("embedding" if index == 0 else f"layer {index - 1}", f"{difference:.2e}")
        table.add_row(OUTPUTS[self.output], f"{self.log_probs:.2e}")
        console.print(table)
        verdict = "within" if self.within(tolerance) else "BEYOND"
        likelihood = "" if self.nll is None else f"nll per token {self.nll:+.2e} on "
        console.print(f"{likelihood}{self.tokens} tokens; {verdict} {tolerance:g}", highlight=False)


def sample_ids(model: Model, *, rows: int = 2, seed: int = 0) -> np.ndarray:
    """Random tokens [rows, T], long enough that every ring wraps: a little over twice the longest reach, at most 1,024.

    Where attention has no window: as many as the model has positions, at most 128.
    """
    reaches = [layer.attention.reach for layer in model.spec.layers]
    length = min(model.spec.embedding.most_tokens or 128, 128) if None in reaches else min(2 * max(r or 1 for r in reaches) + 3, 1024)
    return np.random.default_rng(seed).integers(0, model.spec.vocab, (rows, length))


def compare(model: Model, reference: Model, ids: Sequence[np.ndarray] | np.ndarray) -> Comparison:
    """Run both over each row of ids (at least two tokens) from the start of a stream.

    Raises InputError for rows that are too short, or where the two models are not comparable.
    """
    if problems := _differences_in_kind(model, reference):
        raise InputError(problems, hint="a model is compared with the source it was converted from")
    if short := [index for index, row in enumerate(ids) if len(row) < 2]:
        raise InputError(Problem(f"ids[{short[0]}]", "at least two tokens", str(len(ids[short[0]]))))
    layers = np.zeros(len(model.spec.layers) + 1)
    causal = model.spec.task == "causal_lm"
    output, nll = 0.0, []
    for row in ids:
        done = 0
        for (hidden, found), (expected_hidden, expected) in zip(_traces(model, row), _traces(reference, row), strict=True):
            layers = np.maximum(layers, [_difference(a, b) for a, b in zip(hidden, expected_hidden, strict=True)])
            output = max(output, _difference(found, expected))
            targets = row[done + 1 : done + 1 + len(found)] if causal else row[:0]  # the last row of the last part has none
            steps = np.arange(len(targets))
            nll.append(expected[steps, targets] - found[steps, targets] if causal else np.zeros(0))
            done += len(found)
    name = "log_probs" if causal else "hidden" if model.spec.task == "hidden" else "logits"
    likelihood = float(np.mean(np.concatenate(nll), dtype=np.float64)) if causal else None
    return Comparison(tuple(layers.tolist()), output, likelihood, sum(len(row) for row in ids), name)


def _traces(model: Model, row: Any) -> Iterable[tuple[list[np.ndarray], np.ndarray]]:
    return model.trace(row) if model.spec.task == "causal_lm" else [model.trace_encoder(row)]


def _differences_in_kind(model: Model, reference: Model) -> list[Problem]:
    ours, theirs = ({"vocab": s.vocab, "hidden": s.hidden, "layers": len(s.layers), "task": s.task} for s in (model.spec, reference.spec))
    return [Problem(name, f"{theirs[name]}, as the reference has", str(ours[name])) for name in ours if ours[name] != theirs[name]]


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    worst = float(np.max(np.abs(a.astype(np.float64) - b)))
    return worst if np.isfinite(worst) else float("inf")
