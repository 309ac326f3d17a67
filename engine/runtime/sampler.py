"""Choosing the next token of every sequence of a step."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.backends.runner import NextToken
from engine.errors import EngineError, Problem
from engine.runtime.distribution import Distribution, Question, draw_from, nucleus_of
from engine.runtime.options import GenerationOptions
from engine_kernels.shapes import ClusterShape


@dataclass(frozen=True)
class Draw:
    """A chosen token, its log-probability before any temperature, and the `logprobs` most probable (id, log-probability)."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Request:
    """How one sequence chooses: its options, its seed, and the index of the token among those it generates."""

    options: GenerationOptions
    seed: int
    index: int


def fresh_seed() -> int:
    """A seed from the operating system."""
    return secrets.randbits(64)


def uniform(seed: int, index: int) -> float:
    """The one random number in [0, 1) behind token `index`: Philox with the seed as key and the index as counter, and nothing else."""
    return float(np.random.Generator(np.random.Philox(key=seed, counter=index)).random())


def sample(following: NextToken, outputs: Sequence[ClusterShape], requests: Sequence[Request]) -> list[Draw]:
    """One token per sequence; each tail is computed once for all sequences that need it at the same time."""
    _refuse_nan(following.head)
    questions = [_choose(Distribution(row, outputs), request) for row, request in zip(following.head, requests, strict=True)]
    draws: dict[int, Draw] = {}
    asked: dict[int, int] = {}  # sequence → the tail it waits for

    def resume(sequence: int, row: np.ndarray | None) -> None:
        try:
            asked[sequence] = next(questions[sequence]) if row is None else questions[sequence].send(row)
        except StopIteration as stop:
            draws[sequence] = stop.value

    for sequence in range(len(questions)):
        resume(sequence, None)
    while asked:
        cluster = min(asked.values())
        sequences = [s for s, c in asked.items() if c == cluster]
        rows = following.tail(cluster, np.array(sequences))
        _refuse_nan(rows)
        for sequence, row in zip(sequences, rows, strict=True):
            del asked[sequence]
            resume(sequence, row)
    return [draws[sequence] for sequence in range(len(questions))]


def _choose(distribution: Distribution, request: Request) -> Question[Draw]:
    options = request.options
    top: tuple[tuple[int, float], ...] = ()
    if options.logprobs:
        ids, log_probs = yield from distribution.top(options.logprobs)
        top = tuple(zip(ids.tolist(), log_probs.tolist(), strict=True))
    if options.temperature == 0:
        ids, log_probs = yield from distribution.top(1)
        return Draw(int(ids[0]), float(log_probs[0]), top)
    at = uniform(request.seed, request.index)
    if options.top_k is not None:
        ranked = yield from distribution.top(options.top_k)
        if options.top_p is not None:
            ranked = nucleus_of(ranked, options.temperature, options.top_p)
        token, log_prob = draw_from(ranked, options.temperature, at)
    elif options.top_p is not None:
        ranked = yield from distribution.nucleus(options.temperature, options.top_p)
        token, log_prob = draw_from(ranked, options.temperature, at)
    else:
        token, log_prob = yield from distribution.draw(options.temperature, at)
    return Draw(token, log_prob, top)


def _refuse_nan(log_probs: np.ndarray) -> None:
    if np.isnan(log_probs).any():
        raise EngineError(
            Problem("log-probabilities of the next token", "numbers", "NaN"),
            hint='values left the range of the dtype: load the model with dtype="float32" or "bfloat16"',
        )
