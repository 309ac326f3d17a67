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
    ours = build(checkpoint, Settings("triton", run.dtype))
    plain, exact = _torch(run, checkpoint, run.dtype), _torch(run, checkpoint, "float32")
    assert isinstance(ours, GpuRunner)
    probe = Probe.draw(vocab, 2, rows, DECODED, seed=1)
    gate = run.gate(f"model with {heads} heads", probe.decode(ours), probe.decode(plain), probe.decode(exact))
    if gate is None:
        return
    for batch in run.sizes.batches:
        run.attempt(f"decode, {heads} heads, batch {batch}", partial(_decode, run, ours, heads, batch, gate))
        run.attempt(f"decode, torch, {heads} heads, batch {batch}", partial(compiled_step.measure, run, plain, heads, batch))
    for name, runner in (("triton", ours), ("torch, eager", plain)):
        run.attempt(f"token, {name}, {heads} heads", partial(_token, run, name, runner, heads, vocab))
        run.attempt(f"score, {name}, {heads} heads", partial(_score, run, name, runner, heads, vocab))


def _torch(run: Run, checkpoint: Checkpoint, dtype: str) -> Runner:
    """Plain PyTorch on the same device."""
    from engine.model.fold import fold
    from engine.model.plan import compile_stack
    from engine.model.torch_runner import build as build_torch

    return build_torch(compile_stack(checkpoint.spec), fold(checkpoint), Limits(dtype, device=str(run.device)))


def _decode(run: Run, runner: GpuRunner, heads: int, batch: int, gate: dict[str, float]) -> None:
    """One replay of the layers' graph; the floor is the seconds this card copies for to move the bytes the step must read."""
    took = run.seconds(runner.decode_step(batch))
    read = runner.bytes_of_a_step(batch)
    bandwidth = (run.figure("card", "copy") or {}).get("bytes_per_second")
    floor = None if bandwidth is None else read / bandwidth
    launches = runner.describe()["launches_of_last_step"]
    of_floor = None if floor is None else floor / took["seconds"]
    numbers = {"bytes": read, "floor": floor, "of_floor": of_floor, "launches": launches}
    run.add("decode", f"triton, {heads} heads, batch {batch}", **took, **numbers, gate=gate)


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
