"""One run of `python -m bench cpu`: what was asked for, then part by part, threads by threads, model by model; rows after each of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.core import cases, rows
from bench.core.cases import Geometry, Kept
from bench.core.memory import fits, needed_bytes, require_memory
from bench.core.rows import Row
from bench.peers.table import PEERS, Peer, taking_part
from bench.suites.cpu import growth as cpu_growth
from bench.suites.cpu import limits as cpu_limits
from bench.suites.cpu import report as cpu_report
from bench.suites.cpu.bench import Bench, Item, Outcome, PrunedModel, TimingPlan, items_of
from bench.suites.cpu.report import FILE
from engine.checkpoint import Checkpoint
from engine.errors import EngineError, InputError, Problem
from engine.measure.clock import bar
from engine.measure.provenance import provenance

WORKS = ("score", "decode", "share", "attention", "bandwidth", "growth")
QUICK_PEERS = ("cpu:float32", "cpu:bfloat16", "cpu:int8", "published", "torch:float32", "onnxruntime:float32", "openvino:float32")
LENGTHS = (192, 512, 1024, 2048, 4096, 8192)
BATCHES = (1, 2, 4, 8, 16, 32, 64)  # of growth
BATCHES_SHOWN = (1, 16, 64)  # of decode, those that fit into this machine


@dataclass(frozen=True)
class CpuRequest:
    """The work of a run; kept: total heads of the models, the dense one among them."""

    shape: Geometry
    works: tuple[str, ...]
    kept: tuple[int, ...]
    peers: tuple[Peer, ...]
    parts: tuple[str, ...]
    batches: tuple[int, ...]
    threads: tuple[int, ...]
    lengths: tuple[int, ...]
    plan: TimingPlan

    @staticmethod
    def of(
        geometry: str,
        works: Sequence[str] | None,
        kept: Sequence[int] | None,
        peers: Sequence[str] | None,
        parts: Sequence[str] | None,
        batches: Sequence[int] | None,
        threads: Sequence[int] | None,
        rounds: int | None,
        quick: bool,
    ) -> CpuRequest:
        """From the words a user gives; raises InputError naming all that are unknown."""
        shape = cases.geometry(geometry)
        lists = models_of(shape)
        engines = {name for peer in PEERS for name in (peer.engine, f"{peer.engine}:{peer.dtype}")}
        problems = [Problem("work", ", ".join(WORKS), repr(word)) for word in works or [] if word not in WORKS]
        problems += [Problem("kept", ", ".join(map(str, lists)), str(count)) for count in kept or [] if count not in lists]
        problems += [Problem("peer", ", ".join(sorted(engines)), repr(word)) for word in peers or [] if word not in engines]
        problems += [Problem("part", "layers or model", repr(word)) for word in parts or [] if word not in ("layers", "model")]
        if problems:
            raise InputError(problems)
        wanted = peers or (QUICK_PEERS if quick else sorted(engines))
        plan = TimingPlan(rounds=2, tokens=4, patience=1.0) if quick else TimingPlan()
        peers_asked = taking_part(PEERS, wanted)
        kept_asked = tuple(kept or ([min(lists)] if quick else lists))
        usual = (1,) if quick else tuple(batch for batch in BATCHES_SHOWN if fits(memory_of(shape, kept_asked, peers_asked, batch)))
        return CpuRequest(
            shape=shape,
            works=tuple(works or (WORKS[:-1] if quick else WORKS)),
            kept=kept_asked,
            peers=peers_asked,
            parts=tuple(parts or (["layers"] if quick else ["layers", "model"])),
            batches=tuple(batches or usual),
            threads=tuple(threads or ([1] if quick else [1, 2])),
            lengths=LENGTHS if shape == cases.S1 else (shape.rows, 4 * shape.rows),
            plan=plan if rounds is None else replace(plan, rounds=rounds),
        )


def models_of(shape: Geometry) -> dict[int, Kept]:
    """Number of kept heads → head numbers per layer, the dense model first."""
    every = tuple(range(shape.heads))
    return {shape.heads * shape.layers: (every,) * shape.layers} | cases.kept_lists(shape)


def memory_of(shape: Geometry, kept: Sequence[int], peers: Sequence[Peer], batch: int) -> int:
    """Bytes of all engines on the largest of the models, with its vocabulary."""
    spec = cases.dense_spec(shape, vocabulary=True).with_kept(models_of(shape)[max(kept)])
    return needed_bytes(spec, [peer for peer in peers if peer.refusal() is None], batch)


def run(asked: CpuRequest, out: Path | None, *, quiet: bool) -> None:
    """Measure, print the tables, keep the rows in out/cpu.jsonl; raises EngineError for gates that did not pass."""
    needed = memory_of(asked.shape, asked.kept, asked.peers, max(asked.batches))
    require_memory(needed, hint="name fewer engines with --peer, smaller batches with --batch, or models of fewer heads with --kept")
    if not quiet:
        print(f"up to about {needed / 2**30:.1f} GiB of memory, all engines of a model at once", file=sys.stderr)
    labels = {"bench": "cpu", "geometry": asked.shape.name, **provenance()}
    failed: list[str] = []
    found: list[Row] = []
    for part in asked.parts:
        with bar("Drawing weights", 1, quiet=quiet):
            dense = cases.dense_model(asked.shape, vocabulary=part == "model")
        for threads in asked.threads:
            bench = Bench(threads, asked.plan, labels, quiet, shape=asked.shape)
            for _ in _measured(bench, asked, dense, part):
                if out is not None:
                    rows.replace_rows(out / FILE, bench.outcome.tried, bench.outcome.rows)
                failed += bench.outcome.failed
                found += bench.outcome.rows
                bench.outcome = Outcome()
    print("\n".join(filter(None, (cpu_report.peers(found), cpu_report.targets(found)))))
    if out is not None and "growth" in asked.works:
        cpu_report.draw(found, out)
    if failed:
        raise EngineError(["gates did not pass, and what they guard has no figure:", *failed])


def _measured(bench: Bench, asked: CpuRequest, dense: Checkpoint, part: str) -> Iterator[None]:
    """Stops after each piece of work, so that its rows can be kept."""
    lists = models_of(asked.shape)
    ours = [peer for peer in asked.peers if peer.ours]
    for kept in asked.kept:
        model = PrunedModel.of(dense, lists[kept])
        for item in items_of(asked.works, part, asked.batches, asked.shape):
            bench.compare(model, asked.peers, item)
            yield
        if "bandwidth" in asked.works and part == "layers":
            cpu_limits.bandwidth(bench, model, ours)
            yield
        model.close()
    if part != "layers":
        return
    if "attention" in asked.works:
        cpu_limits.attention(bench, ours)
        yield
    if "share" in asked.works:
        models = [PrunedModel.of(dense, lists[kept]) for kept in sorted({max(lists), *asked.kept}, reverse=True)]
        for item in (Item("score", part, 1, asked.shape.rows), Item("decode", part, 1, 1)):
            cpu_limits.proportion(bench, models, ours, item)
            yield
        for model in models:
            model.close()
    if "growth" in asked.works:
        smallest = PrunedModel.of(dense, lists[min(asked.kept)])
        cpu_growth.growth(bench, dense, smallest, ours[0], lengths=asked.lengths, batches=BATCHES)
        yield
