"""The score of texts, dense and pruned: segments of several sequences in mid-stream, gated at the size that is timed."""

from __future__ import annotations

from collections import Counter
from functools import partial

import numpy as np

from bench.core.engines import Stream
from bench.suites.gpu.figures import Run, started
from bench.suites.gpu.models import GpuModel, at_once, models
from bench.suites.gpu.plan import OURS
from engine.measure.tokens import random_ids


def measure(run: Run) -> None:
    for model in models(run):
        run.attempt(f"score, {run.backend}, {model.heads} heads", partial(_score, run, model))


def _score(run: Run, model: GpuModel) -> None:
    """A first segment and a second one before which a whole window stands; what is timed continues the same streams."""
    batch, rows = run.sizes.scored, run.sizes.geometry.rows
    label = f"{run.backend}, {model.heads} heads, {batch} × {rows}"
    ids = random_ids(model.vocab, (batch, 2 * rows), 3)
    targets = np.roll(ids, -1, axis=1)
    if run.backend not in OURS:
        with Stream(model.plain, batch) as stream:
            took = run.clock.host(lambda: stream.step(ids[:, rows:], "target_nll", targets[:, rows:]))
        run.add("score", label, **took, tokens_per_second=batch * rows / took["seconds"])
        return
    plain, exact = (at_once(runner, ids, "target_nll", targets) for runner in (model.plain, model.exact))
    runner = model.ours
    with Stream(runner, batch) as stream:
        first = stream.step(ids[:, :rows], "target_nll", targets[:, :rows]).nll
        before = Counter(runner.kernels.calls)
        later = stream.step(ids[:, rows:], "target_nll", targets[:, rows:]).nll
        kernels = started(before, runner.kernels.calls)
        assert first is not None and later is not None
        found = np.concatenate((first.reshape(batch, rows), later.reshape(batch, rows)), axis=1)
        gate = run.gate(f"score, {label}", found, plain, exact)
        if gate is None:
            return
        took = run.clock.host(lambda: stream.step(ids[:, rows:], "target_nll", targets[:, rows:]))
        runner.check_after_replays()
    run.add("score", label, **took, tokens_per_second=batch * rows / took["seconds"], kernels=kernels, gate=gate)
