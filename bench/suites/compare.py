"""Dense, masked and compact models of the same weights, side by side: the gate, then the clock, then rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from bench.core import cases
from bench.core.cases import Kept
from bench.core.engines import EngineSettings, Stream, build
from bench.core.gate import DECODED, Probe, gate
from bench.core.nominal import layers_flops, model_flops
from bench.core.rows import Row, key_of
from engine.backends.runner import Runner
from engine.checkpoint import Checkpoint
from engine.measure.clock import bar, interleaved, paired_ratio, percentiles
from engine.measure.gate import Gate
from engine.measure.provenance import Digests
from engine.measure.tokens import random_ids
from engine.spec.cost_parts import Flops
from engine_kernels.native import instruction_set

REFERENCE = EngineSettings("torch", "float32")


@dataclass(frozen=True)
class ComparisonPlan:
    """How much is measured: rounds after warm-up rounds, and tokens per sample of decode (a single one is too short to time)."""

    rounds: int = 20
    warmup: int = 3
    decoded: int = 8


@dataclass(frozen=True)
class Case:
    """part: "layers" leaves the vocabulary out, "model" has it; work: "score" of a segment of rows tokens, or "decode" of one token."""

    part: str
    work: str
    batch: int
    rows: int


@dataclass(frozen=True)
class Engine:
    """One model that takes its turn, and the masked model it has to agree with."""

    variant: str
    kept: Kept
    checkpoint: Checkpoint
    reference: Checkpoint

    @property
    def heads(self) -> list[int]:
        """Kept heads per layer."""
        return [len(heads) for heads in self.kept]

    @property
    def name(self) -> str:
        return f"{self.variant} {sum(self.heads)}"


@dataclass(frozen=True)
class Outcome:
    """rows: what was measured; tried: the keys of all that should have been; failed: a line for every gate that did not pass."""

    rows: list[Row]
    tried: list[tuple[object, ...]]
    failed: list[str]


def line_up(dense: Checkpoint, lists: Mapping[int, Kept]) -> list[Engine]:
    """The dense model, then masked and compact of every list."""
    engines = [Engine("dense", tuple(layer.attention.kept for layer in dense.spec.layers), dense, dense)]
    for kept in lists.values():
        masked = cases.masked(dense, kept)
        engines.append(Engine("masked", kept, masked, masked))
        engines.append(Engine("compact", kept, cases.compact(dense, kept), masked))
    return engines


def measure(
    engines: list[Engine],
    wanted: list[Case],
    settings: EngineSettings,
    plan: ComparisonPlan,
    *,
    labels: Mapping[str, Any],
    quiet: bool = False,
) -> Outcome:
    """Run every case over every engine. labels: what goes into each row as it is: bench, geometry, machine, versions, commit."""
    digests = Digests()
    runners: dict[str, Runner] = {}
    with bar("Loading weights", len(engines), quiet=quiet) as advance:
        for engine in engines:
            runners[engine.name] = build(engine.checkpoint, settings)
            advance()
    threads = runners[engines[0].name].describe().get("threads", settings.threads)
    outcome = Outcome([], [], [])
    for case in wanted:
        gates = _gates(engines, runners, case, settings, quiet=quiet)
        passed = [engine for engine in engines if gates[engine.name].passed]
        samples = _time(passed, runners, case, plan, quiet=quiet)
        for engine in engines:
            about = {
                **labels,
                **{"work": case.work, "part": case.part, "batch": case.batch, "rows": case.rows},
                **{"model": engine.variant, "kept": sum(engine.heads), "heads": engine.heads},
                **{"engine": settings.backend, "dtype": settings.dtype, "threads": threads},
                "gate": gates[engine.name].to_dict(),
                "digest": digests.of(engine.checkpoint.weights),
                "reference_digest": digests.of(engine.reference.weights),
            }
            outcome.tried.append(key_of(about))
            if engine not in passed:
                outcome.failed.append(_failure(engine, case, gates[engine.name]))
            elif engines[0] in passed:  # without a dense figure there is nothing to compare with
                measured = _figures(engine, engines[0], case, plan, samples)
                outcome.rows.append(Row(**about, skipped=None, instruction_set=instruction_set(), prepared=0.0, **measured))
    return outcome


def _gates(engines: list[Engine], runners: Mapping[str, Runner], case: Case, settings: EngineSettings, *, quiet: bool) -> dict[str, Gate]:
    """Each engine on the path of the case against its masked model in one step, on plain PyTorch in float32."""
    extra = case.rows if case.work == "score" else DECODED
    probe = Probe.draw(engines[0].checkpoint.spec.vocab, case.batch, case.rows, extra, seed=1)
    path = probe.prefill if case.work == "score" else probe.decode
    exact: dict[int, tuple[np.ndarray, np.ndarray | None]] = {}  # by the reference's id: masked and compact share one
    gates = {}
    with bar(f"Checking {case.part}, {case.work}, batch {case.batch}", len(engines), quiet=quiet) as advance:
        for engine in engines:
            if id(engine.reference) not in exact:
                plain = None
                if settings.dtype != "float32":
                    plain = probe.whole(build(engine.reference, replace(REFERENCE, dtype=settings.dtype, threads=settings.threads)))
                exact[id(engine.reference)] = probe.whole(build(engine.reference, replace(REFERENCE, threads=settings.threads))), plain
            expected, plain = exact[id(engine.reference)]
            gates[engine.name] = gate(path(runners[engine.name]), expected, settings.dtype, plain)
            advance()
    return gates


def _time(engines: list[Engine], runners: Mapping[str, Runner], case: Case, plan: ComparisonPlan, *, quiet: bool) -> dict[str, list[float]]:
    """Seconds per call of each engine, on streams that already hold a segment."""
    streams = {engine.name: Stream(runners[engine.name], case.batch) for engine in engines}
    try:
        work = {engine.name: _call(engine, streams[engine.name], case, plan) for engine in engines}
        with bar(f"Timing {case.part}, {case.work}, batch {case.batch}", len(work) * (plan.rounds + plan.warmup), quiet=quiet) as advance:
            return interleaved(work, rounds=plan.rounds, warmup=plan.warmup, advance=advance)
    finally:
        for stream in streams.values():
            stream.close()


def _call(engine: Engine, stream: Stream, case: Case, plan: ComparisonPlan) -> Callable[[], object]:
    ids, targets = _tokens(engine.checkpoint.spec.vocab, case)
    stream.step(ids, "hidden")
    if case.work == "score":
        return partial(stream.step, ids, "hidden") if case.part == "layers" else partial(stream.step, ids, "target_nll", targets)
    return lambda: [stream.step(ids[:, :1], "hidden" if case.part == "layers" else "next") for _ in range(plan.decoded)]


def _tokens(vocab: int, case: Case) -> tuple[np.ndarray, np.ndarray]:
    """ids and targets [batch, rows], the same for every engine and call."""
    tokens = random_ids(vocab, (case.batch, case.rows + 1), seed=2)
    return tokens[:, :-1], tokens[:, 1:]


def call_flops(checkpoint: Checkpoint, case: Case) -> Flops:
    """FLOPs of a segment, or of one token of every sequence."""
    spec = checkpoint.spec
    if case.part == "layers":
        return layers_flops(spec, work=case.work, batch=case.batch, rows=case.rows)
    ids, targets = _tokens(spec.vocab, case)
    if case.work == "score":
        return model_flops(spec, ids, targets, work="score")
    return model_flops(spec, ids[:, :1], None, work="decode")


def _figures(engine: Engine, dense: Engine, case: Case, plan: ComparisonPlan, samples: Mapping[str, list[float]]) -> dict[str, Any]:
    """What was counted and what was measured, beside the dense model; FLOPs and seconds of a segment, or of one token of every sequence.

    nominal, nominal_executed: the dense model's FLOPs over this one's.  achieved: median over the rounds of dense seconds / this one's.
    efficiency: achieved / nominal.
    """
    mine, base = call_flops(engine.checkpoint, case), call_flops(dense.checkpoint, case)
    nominal, achieved = base.needed / mine.needed, paired_ratio(samples[dense.name], samples[engine.name])
    steps = 1 if case.work == "score" else plan.decoded
    seconds = [sample / steps for sample in samples[engine.name]]
    return {
        "figures": {
            "flops_needed": mine.needed,
            "flops_executed": mine.executed,
            "nominal": nominal,
            "nominal_executed": base.executed / mine.executed,
            "achieved": achieved,
            "efficiency": achieved / nominal,
        },
        "percentiles": percentiles(seconds),
        "samples": seconds,
    }


def _failure(engine: Engine, case: Case, found: Gate) -> str:
    where = f"{engine.name}, {case.part}, {case.work}, batch {case.batch}"
    return f"{where}: log-probabilities differ by {found.difference:.3g}, allowed {found.limit:.3g} against {found.against}"


def cases_of(parts: list[str], batches: list[int], rows: int) -> Iterator[Case]:
    """Every part × work × batch."""
    for part in parts:
        for work in ("score", "decode"):
            for batch in batches:
                yield Case(part, work, batch, rows)
