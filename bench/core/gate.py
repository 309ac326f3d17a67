"""Correctness first: what an engine answers, on the path that will be timed, against the masked model; without it no figure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bench.core.engines import Stream
from engine.backends.runner import Runner
from engine.measure.gate import LOG_PROB_LIMIT, Gate
from engine.measure.tokens import random_ids
from engine_kernels.testing import difference, tolerance

DECODED = 8  # tokens fed one by one after the first segment


@dataclass(frozen=True)
class Probe:
    """Tokens and targets [batch, rows + extra] that the gate feeds; `extra` rows come after the first segment."""

    ids: np.ndarray
    targets: np.ndarray
    rows: int

    @staticmethod
    def draw(vocab: int, batch: int, rows: int, extra: int, seed: int) -> Probe:
        tokens = random_ids(vocab, (batch, rows + extra + 1), seed)
        return Probe(tokens[:, :-1], tokens[:, 1:], rows)

    def whole(self, runner: Runner) -> np.ndarray:
        """-log p of each target [batch, rows + extra], all tokens in one step from the start of a stream."""
        return self._run(runner, [self.ids.shape[1]])

    def prefill(self, runner: Runner) -> np.ndarray:
        """The same, the extra rows as a second segment."""
        return self._run(runner, [self.rows, self.ids.shape[1] - self.rows])

    def decode(self, runner: Runner) -> np.ndarray:
        """The same, the extra rows one by one."""
        return self._run(runner, [self.rows] + [1] * (self.ids.shape[1] - self.rows))

    def _run(self, runner: Runner, lengths: list[int]) -> np.ndarray:
        ends = np.cumsum(lengths)
        parts = []
        batch = len(self.ids)
        with Stream(runner, batch) as stream:
            for start, end in zip(ends - lengths, ends, strict=True):
                result = stream.step(self.ids[:, start:end], "target_nll", self.targets[:, start:end])
                assert result.nll is not None
                parts.append(result.nll.reshape(batch, -1))
        return np.concatenate(parts, axis=1)


def gate(found: np.ndarray, exact: np.ndarray, dtype: str, plain: np.ndarray | None = None) -> Gate:
    """found against exact: the masked model's log-probabilities in float32 on plain PyTorch.

    In float32 they may differ by LOG_PROB_LIMIT; in a narrower dtype by the rule of engine_kernels.testing, with `plain` the masked model
    in that dtype on plain PyTorch.
    """
    if dtype == "float32":
        return Gate(difference(found, exact), LOG_PROB_LIMIT, "masked, torch, float32")
    assert plain is not None
    return Gate(difference(found, exact), tolerance(plain, exact, dtype), f"masked, torch, float32; plain error of {dtype} doubled")
