"""What bounds our own kernels: the time of kept heads against all, attention against multiply-adds, a token against reading its bytes.

proportion: figures `of_dense`, seconds against the model with every head in the same rounds, and `share`, kept heads against all.
attention: a layer whose projections are 1 % of it, a segment; `flops`, `peak` a second and `share`, the peak's and the kernel's of the
same rounds.  bandwidth: a token of one sequence; `bytes` it touches, `peak` bytes a second of reading as many, `share` likewise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from bench.core import cases
from bench.core.cases import Geometry
from bench.core.engines import Stream
from bench.core.machine import Machine, buffer_of
from bench.core.nominal import layers_flops
from bench.peers.table import Peer
from bench.suites.cpu.bench import Bench, Item, PrunedModel, ratio, work
from engine.backends.fold import fold
from engine.checkpoint import Checkpoint
from engine.spec.cost import BYTES

NARROW = 16  # width of the residual stream in the model of `attention`
Calls = dict[str, Callable[[], object]]
STEPS = 10_000_000  # multiply-adds of each register in a sample: as long as the attention it is held against, some 20 ms


def proportion(bench: Bench, models: Sequence[PrunedModel], peers: Sequence[Peer], item: Item) -> None:
    """Each of our own precisions over all lists of kept heads in turns; the first model is the dense one."""
    for peer in peers:
        right = []
        for model in models:
            gates, skipped = bench.gates(model, [peer], item)
            if peer.name in gates:
                right.append((model, gates[peer.name]))
            else:
                bench.add(model, peer, replace(item, work=f"{item.work} share"), None, [], {}, skipped=skipped[peer.name])
        streams = {str(model.kept): Stream(bench.runner(model, peer), item.batch) for model, gate in right if gate.passed}
        try:
            calls = {name: work(stream, models[0].compact, item, item.batch, bench.plan.tokens) for name, stream in streams.items()}
            samples = bench.clock({n: call for n, (call, _) in calls.items()}, {n: steps for n, (_, steps) in calls.items()}, item)
        finally:
            for stream in streams.values():
                stream.close()
        whole = samples.get(str(models[0].kept))
        for model, gate in right:
            mine, figures = samples.get(str(model.kept), []), {"share": model.kept / models[0].kept}
            if mine and whole:
                figures["of_dense"] = ratio(mine, whole)
            bench.add(model, peer, replace(item, work=f"{item.work} share"), gate, mine, figures)


def attention(bench: Bench, peers: Sequence[Peer]) -> None:
    """Fused attention of a segment against the registers' own rate, in turns."""
    shape = narrow(bench.shape)
    model = PrunedModel.of(cases.dense_model(shape, vocabulary=False), (tuple(range(shape.heads)),))
    item = Item("attention", "layers", 1, shape.rows)
    flops = layers_flops(model.compact.spec, work="score", batch=1, rows=shape.rows).needed
    with Machine(bench.threads) as machine:
        for peer in peers:
            gates, skipped = bench.gates(model, [peer], item)
            if peer.name in skipped:
                bench.add(model, peer, item, None, [], {}, skipped=skipped[peer.name])
                continue
            done = machine.multiply_add(STEPS)
            with Stream(bench.runner(model, peer), 1) as stream:
                calls: Calls = {"kernel": work(stream, model.compact, item, 1, 1)[0], "peak": partial(machine.multiply_add, STEPS)}
                samples = bench.clock(calls, {"kernel": 1, "peak": 1}, item)
            share = ratio(samples["peak"], samples["kernel"]) * flops / done
            figures = {"flops": float(flops), "peak": done / float(np.median(samples["peak"])), "share": share}
            bench.add(model, peer, item, gates[peer.name], samples["kernel"], figures)


def bandwidth(bench: Bench, model: PrunedModel, peers: Sequence[Peer]) -> None:
    """A token of one sequence against reading as many bytes from end to end, in turns."""
    item = Item("decode", "layers", 1, 1)
    shown = replace(item, work="bandwidth")
    with Machine(bench.threads) as machine:
        for peer in peers:
            gates, skipped = bench.gates(model, [peer], item)
            if peer.name in skipped:
                bench.add(model, peer, shown, None, [], {}, skipped=skipped[peer.name])
                continue
            size = touched_bytes(model.compact, peer.dtype)
            buffer = buffer_of(size)
            with Stream(bench.runner(model, peer), 1) as stream:
                call, steps = work(stream, model.compact, item, 1, bench.plan.tokens)
                calls: Calls = {"kernel": call, "peak": partial(machine.read, buffer, steps)}
                samples = bench.clock(calls, {"kernel": steps, "peak": steps}, item)
            rate = size / float(np.median(samples["peak"]))
            figures = {"bytes": float(size), "peak": rate, "share": ratio(samples["peak"], samples["kernel"])}
            bench.add(model, peer, shown, gates[peer.name], samples["kernel"], figures)


def touched_bytes(checkpoint: Checkpoint, dtype: str) -> int:
    """What one token of one sequence reads of the layers: every matrix in `dtype`, with scales for int8, and the rings in float32."""
    total = 0
    for layer, arrays in zip(checkpoint.spec.layers, fold(checkpoint).layers, strict=True):
        for array in arrays.values():
            if array.ndim == 1:
                total += array.size * 4
            elif dtype == "int8":
                total += array.size + array.size // array.shape[-1] * 4
            else:
                total += array.size * BYTES[dtype]
        a = layer.attention
        total += 2 * a.heads * (a.window or 0) * a.head_dim * 4
    return total


def narrow(shape: Geometry) -> Geometry:
    """One layer of the geometry with a residual stream so narrow that its attention is nearly all of it."""
    return replace(shape, layers=1, hidden=min(NARROW, shape.hidden), small_words=min(64, shape.small_words))
