"""How our own kernels grow with the length of a step, the sequences side by side and the heads of a layer: time and peak memory.

figures: `per_token`, seconds of one token of one sequence, and `memory`, bytes above what the loaded model takes, where the system says.
"""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from bench.core import cases
from bench.core.engines import Stream
from bench.core.gate import Probe
from bench.peers.table import Peer
from bench.suites.cpu.bench import Bench, Item, PrunedModel, gate_of
from engine.checkpoint import Checkpoint
from engine.measure.gate import Gate
from engine.measure.tokens import random_ids
from engine_kernels.testing import difference

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def growth(bench: Bench, dense: Checkpoint, model: PrunedModel, peer: Peer, *, lengths: Sequence[int], batches: Sequence[int]) -> None:
    """Steps of `lengths` rows, tokens of `batches` sequences on `model`, and a segment with 0, 1, 2, … heads in every layer."""
    shape = bench.shape
    _series(bench, peer, [(model, Item("growth rows", "layers", 1, rows)) for rows in lengths])
    _series(bench, peer, [(model, Item("growth batch", "layers", batch, 1)) for batch in batches])
    even = [PrunedModel.of(dense, cases.choose_heads(shape, [heads] * shape.layers)) for heads in range(shape.heads + 1)]
    _series(bench, peer, [(each, Item("growth heads", "layers", 1, shape.rows)) for each in even])


def _series(bench: Bench, peer: Peer, points: Sequence[tuple[PrunedModel, Item]]) -> None:
    """Each point on a runner that has not grown yet: its memory and its gate, then the time of all points in turns."""
    if reason := peer.refusal():
        for model, item in points:
            bench.add(model, peer, item, None, [], {}, skipped=reason)
        return
    checked: list[tuple[Gate, dict[str, float]]] = []
    streams: dict[str, Stream] = {}
    calls: dict[str, Callable[[], object]] = {}
    for index, (model, item) in enumerate(points):
        runner = peer.build(model.compact, peer.dtype, bench.threads)
        tokens = random_ids(model.compact.spec.vocab, (item.batch, item.rows + 1), seed=1)
        probe = Probe(tokens[:, :-1], tokens[:, 1:], item.rows)
        before = memory_now()
        found = probe.whole(runner)
        peak = memory_peak()
        exact = probe.whole(model.reference("float32", bench.threads))
        memory = {} if before is None or peak is None else {"memory": float(max(0, peak - before))}
        checked.append((gate_of(peer, difference(found, exact), []), memory))
        streams[str(index)] = Stream(runner, item.batch)
        calls[str(index)] = partial(streams[str(index)].step, probe.ids, "hidden")
    patient = replace(bench, plan=replace(bench.plan, patience=math.inf))
    samples = patient.clock(calls, dict.fromkeys(calls, 1), points[0][1])
    for index, ((model, item), (gate, memory)) in enumerate(zip(points, checked, strict=True)):
        seconds = samples[str(index)]
        per_token = float(np.median(seconds)) / (item.batch * item.rows)
        bench.add(model, peer, item, gate, seconds, {"per_token": per_token} | memory)


def memory_now() -> int | None:
    """Resident bytes, from which the peak starts anew; None where the system keeps no such account."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed must not serve what is allocated next
        CLEAR.write_text("5")
        return _status("VmRSS")
    except (OSError, AttributeError):
        return None


def memory_peak() -> int | None:
    """The most resident bytes since memory_now."""
    try:
        return _status("VmHWM")
    except OSError:
        return None


def _status(name: str) -> int | None:
    found = re.search(rf"^{name}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    return None if found is None else int(found[1]) * 1024
