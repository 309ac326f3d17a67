"""How our own kernels grow with the length of a step, the sequences side by side and the heads of a layer: time and peak memory.

figures: `per_token`, seconds of one token of one sequence, and `memory`, bytes above what the loaded model takes, where the system says.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bench import cases
from bench.cpu import Bench, Item, Model, gate_of
from bench.engines import Stream, random_ids
from bench.gate import Probe
from bench.peers.table import Peer
from engine.checkpoint import Checkpoint
from engine_kernels.testing import difference

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def growth(bench: Bench, dense: Checkpoint, model: Model, peer: Peer, *, lengths: Sequence[int], batches: Sequence[int]) -> None:
    """Steps of `lengths` rows, tokens of `batches` sequences on `model`, and a segment with 0, 1, 2, … heads in every layer."""
    for rows in lengths:
        _one(bench, model, peer, Item("growth rows", "layers", 1, rows))
    for batch in batches:
        _one(bench, model, peer, Item("growth batch", "layers", batch, 1))
    shape = bench.shape
    for heads in range(shape.heads + 1):
        even = Model.of(dense, cases.choose_heads(shape, [heads] * shape.layers))
        _one(bench, even, peer, Item("growth heads", "layers", 1, shape.rows))


def _one(bench: Bench, model: Model, peer: Peer, item: Item) -> None:
    """One step from the start of a stream, of a runner that has not grown yet: its memory, the gate, its time."""
    if reason := peer.refusal():
        bench.add(model, peer, item, None, [], {}, skipped=reason)
        return
    runner = peer.build(model.compact, peer.dtype, bench.threads)
    tokens = random_ids(model.compact.spec.vocab, (item.batch, item.rows + 1), seed=1)
    probe = Probe(tokens[:, :-1], tokens[:, 1:], item.rows)
    before = memory_now()
    found = probe.whole(runner)
    peak = memory_peak()
    exact = probe.whole(model.reference("float32", bench.threads))
    gate = gate_of(peer, difference(found, exact), [])
    with Stream(runner, item.batch) as stream:
        call = partial(stream.step, probe.ids, "hidden")
        samples = bench.clock({"kernel": call}, {"kernel": 1}, item)["kernel"]
    figures = {"per_token": sorted(samples)[len(samples) // 2] / (item.batch * item.rows)}
    if before is not None and peak is not None:
        figures["memory"] = float(max(0, peak - before))
    bench.add(model, peer, item, gate, samples, figures)


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
