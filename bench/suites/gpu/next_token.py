"""A token of one stream with its embedding and vocabulary, dense and pruned, the distribution of the next one on the host."""

from __future__ import annotations

from collections import Counter
from functools import partial

import numpy as np

from bench.core.engines import Stream
from bench.suites.gpu.figures import Run, started
from bench.suites.gpu.models import GpuModel, models
from bench.suites.gpu.plan import OURS
from engine.backends.runner import Runner
from engine.measure.tokens import random_ids

FED = 12  # tokens the gate feeds, if so many are fed at all


def measure(run: Run) -> None:
    for model in models(run):
        run.attempt(f"token, {run.backend}, {model.heads} heads", partial(_token, run, model))


def _token(run: Run, model: GpuModel) -> None:
    label, numbers = f"{run.backend}, {model.heads} heads", {}
    runner: Runner = model.plain
    if run.backend in OURS:
        ids = random_ids(model.vocab, (1, min(FED, run.sizes.fed)), 2)
        before = Counter(model.ours.kernels.calls)
        found, plain, exact = (distributions(each, ids) for each in (model.ours, model.plain, model.exact))
        gate = run.gate(f"token, {label}", found, plain, exact)
        if gate is None:
            return
        runner, numbers = model.ours, {"kernels": started(before, model.ours.kernels.calls), "gate": gate}
    ids = random_ids(model.vocab, (1, 1), 4)
    with Stream(runner, 1) as stream:
        took = run.clock.host(lambda: stream.step(ids, "next"))
    if run.backend in OURS:
        model.ours.check_after_replays()
    run.add("token", label, **took, **numbers)


def distributions(runner: Runner, ids: np.ndarray) -> np.ndarray:
    """Log-probabilities [T, words] after each token of one stream, ids [1, T], a step per token."""
    heads = []
    with Stream(runner, 1) as stream:
        for t in range(ids.shape[1]):
            found = stream.step(ids[:, t : t + 1], "next").next
            assert found is not None
            heads.append(found.head[0])
    return np.stack(heads)
