"""Whole models: a decode step of the layers by batch, a token with its vocabulary, and the score of a text, dense and pruned."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from bench.cases import compact, dense_model, kept_lists
from bench.engines import Settings, Stream, build, random_ids
from bench.gate import Probe
from bench.gpu import compiled_step
from bench.gpu.figures import Run
from engine.checkpoint import Checkpoint
from engine.model.gpu_runner import GpuRunner
from engine.model.runner import Limits, Runner

DECODED = 4  # tokens the gate feeds one by one


def measure(run: Run) -> None:
    dense = dense_model(run.sizes.geometry, vocabulary=False)
    lists = kept_lists(run.sizes.geometry)
    fewest = min(lists)
    for checkpoint in (dense, compact(dense, lists[fewest])):
        run.attempt(f"model with {_heads(checkpoint)} heads", partial(_model, run, checkpoint))


def _heads(checkpoint: Checkpoint) -> int:
    return sum(layer.attention.heads for layer in checkpoint.spec.layers)


def _model(run: Run, checkpoint: Checkpoint) -> None:
    heads, vocab, rows = _heads(checkpoint), checkpoint.spec.vocab, run.sizes.geometry.rows
    plain, exact = _torch(run, checkpoint, run.dtype), _torch(run, checkpoint, "float32")
    probe = Probe.draw(vocab, 2, rows, DECODED, seed=1)
    near, right = probe.decode(plain), probe.decode(exact)
    runners: dict[str, Runner] = {"torch, eager": plain}
    for name in run.backends:
        ours = build(checkpoint, Settings(name, run.dtype))
        assert isinstance(ours, GpuRunner)
        gate = run.gate(f"model with {heads} heads, {name}", probe.decode(ours), near, right)
        if gate is None:
            continue
        runners[name] = ours
        for batch in run.sizes.batches:
            run.attempt(f"decode, {name}, {heads} heads, batch {batch}", partial(_decode, run, name, ours, heads, batch, gate))
    for batch in run.sizes.batches:
        run.attempt(f"decode, torch, {heads} heads, batch {batch}", partial(compiled_step.measure, run, plain, heads, batch))
    for name, runner in runners.items():
        run.attempt(f"token, {name}, {heads} heads", partial(_token, run, name, runner, heads, vocab))
        run.attempt(f"score, {name}, {heads} heads", partial(_score, run, name, runner, heads, vocab))


def _torch(run: Run, checkpoint: Checkpoint, dtype: str) -> Runner:
    """Plain PyTorch on the same device."""
    from engine.model.fold import fold
    from engine.model.plan import compile_stack
    from engine.model.torch_runner import build as build_torch

    return build_torch(compile_stack(checkpoint.spec), fold(checkpoint), Limits(dtype, device=str(run.device)))


def _decode(run: Run, name: str, runner: GpuRunner, heads: int, batch: int, gate: dict[str, float]) -> None:
    """One replay of the layers' graph; the floor is the seconds this card copies for to move the bytes the step must read."""
    took = run.seconds(runner.decode_step(batch))
    read = runner.bytes_of_a_step(batch)
    bandwidth = (run.figure("card", "copy") or {}).get("bytes_per_second")
    floor = None if bandwidth is None else read / bandwidth
    launches = runner.describe()["launches_of_last_step"]
    of_floor = None if floor is None else floor / took["seconds"]
    numbers = {"bytes": read, "floor": floor, "of_floor": of_floor, "launches": launches}
    run.add("decode", f"{name}, {heads} heads, batch {batch}", **took, **numbers, gate=gate)


def _token(run: Run, name: str, runner: Runner, heads: int, vocab: int) -> None:
    """A token of one stream with its embedding and vocabulary, results on the host."""
    ids = random_ids(vocab, (1, 1), 2)
    with Stream(runner, 1) as stream:
        took = run.seconds(lambda: stream.step(ids, "next"))
    run.add("token", f"{name}, {heads} heads", **took)


def _score(run: Run, name: str, runner: Runner, heads: int, vocab: int) -> None:
    batch, rows = run.sizes.batches[2 if len(run.sizes.batches) > 2 else -1], run.sizes.geometry.rows
    ids = random_ids(vocab, (batch, rows), 3)
    targets = np.roll(ids, -1, axis=1)
    with Stream(runner, batch) as stream:
        took = run.seconds(lambda: stream.step(ids, "target_nll", targets))
    run.add("score", f"{name}, {heads} heads, {batch} × {rows}", **took, tokens_per_second=batch * rows / took["seconds"])
    if run.device.type == "cuda":
        torch.cuda.empty_cache()
