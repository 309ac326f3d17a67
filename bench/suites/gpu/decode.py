"""A decode step of the layers by batch, dense and pruned: ours as one replay, gated at the very batch that is timed; PyTorch beside it."""

from __future__ import annotations

from collections import Counter
from functools import cached_property, partial

import numpy as np
import torch

from bench.core.engines import Stream
from bench.suites.gpu import compiled_step
from bench.suites.gpu.figures import Run, started
from bench.suites.gpu.models import GpuModel, at_once, models
from bench.suites.gpu.plan import OURS
from engine.backends.gpu.runner import GpuRunner
from engine.measure.tokens import random_ids

COMPARED = 4  # tokens at the end of those that are fed


def measure(run: Run) -> None:
    """Each batch for both models before the next batch, so that the more wanted figures come first."""
    if run.backend == "compiled":
        compiled_step.measure(run, models(run))
        return
    cases = [Case(model) for model in models(run)]
    for batch in run.sizes.batches:
        for case in cases:
            work = _ours if run.backend in OURS else _torch
            run.attempt(f"decode, {run.backend}, {case.model.heads} heads, batch {batch}", partial(work, run, case, batch))


class Case:
    """A model, and what plain PyTorch answers to as many sequences as the largest batch has."""

    def __init__(self, model: GpuModel) -> None:
        sizes = model.run.sizes
        self.model = model
        self.ids = random_ids(model.vocab, (max(sizes.batches), sizes.fed), 1)

    @cached_property
    def answers(self) -> tuple[np.ndarray, np.ndarray]:
        """Plain and exact hidden states [B, COMPARED, hidden] of the last tokens."""
        plain, exact = (at_once(runner, self.ids, "hidden")[:, -COMPARED:] for runner in (self.model.plain, self.model.exact))
        return plain, exact


def one_by_one(runner: GpuRunner, ids: np.ndarray) -> np.ndarray:
    """Hidden states [B, COMPARED, hidden] of the last tokens of ids [B, T], every token a decode step of B rows from an empty stream on."""
    last = []
    with Stream(runner, len(ids)) as stream:
        for t in range(ids.shape[1]):
            hidden = stream.step(ids[:, t : t + 1], "hidden").hidden
            assert hidden is not None
            if t >= ids.shape[1] - COMPARED:
                last.append(hidden)
    return np.stack(last, axis=1)


def _ours(run: Run, case: Case, batch: int) -> None:
    """One replay of the step, on rings and rows of random numbers, the same every time.

    The floor is the seconds this card copies for to move the bytes the step must read from memory.
    """
    runner, (plain, exact) = case.model.ours, case.answers
    label = f"{run.backend}, {case.model.heads} heads, batch {batch}"
    before = Counter(runner.kernels.calls)
    gate = run.gate(f"decode, {label}", one_by_one(runner, case.ids[:batch]), plain[:batch], exact[:batch])
    if gate is None:
        return
    with runner.decode_step(batch) as step:
        first = [result.clone() for result in step.results]
        took = run.clock.both(step)
        runner.check_after_replays()
        if not all(map(torch.equal, first, step.results)):  # false for a NaN, too
            run.fail(f"decode, {label}: replays of the same rows differ")
            return
    described, read = runner.describe(), runner.bytes_of_a_step(batch)
    floor = read / run.bandwidth
    numbers = {"bytes": read, "floor": floor, "of_floor": floor / took["flushed"]["seconds"]}
    numbers |= {"launches": described["launches_of_last_step"], "kernels": started(before, runner.kernels.calls)}
    run.add("decode", label, **took, **numbers, gate=gate)


def _torch(run: Run, case: Case, batch: int) -> None:
    compiled_step.eager(run, case.model, batch)
