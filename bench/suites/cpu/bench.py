"""`python -m bench cpu`: our native code beside every other way to run the same weights: the gate, then the clock, then rows.

Work on one model: `score`, a segment of every sequence, and `decode`, one token of every sequence. Figures of both, all of the same
rounds: `times_NAME` for each of our own precisions, how many times as long as it this engine takes; and for our own at more than one
sequence `tokens_gained`, tokens a second against one sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from typing import Any

import numpy as np

from bench.core import cases
from bench.core.cases import Geometry, Kept
from bench.core.engines import EngineSettings, Stream, build
from bench.core.gate import Probe
from bench.core.rows import Row, key_of
from bench.peers.base import Skipped
from bench.peers.table import Peer
from engine.backends.runner import Runner
from engine.checkpoint import Checkpoint
from engine.measure.clock import bar, interleaved, paired_ratio, percentiles
from engine.measure.gate import LOG_PROB_LIMIT, Gate
from engine.measure.provenance import Digests
from engine.measure.tokens import random_ids
from engine_kernels.native import instruction_set
from engine_kernels.testing import difference, tolerance

FED = 16  # tokens the gate of `decode` feeds one by one
PLAIN_ROWS = 16  # rows of one sequence on plain PyTorch in bfloat16, which takes seconds without instructions for it
INT8_SLACK = 4.0  # 7 bits against bfloat16's 8, and one scale for a whole row


@dataclass(frozen=True)
class TimingPlan:
    """rounds of every engine; tokens: decoded in one sample of one sequence; patience: a first call of more seconds is the only sample."""

    rounds: int = 7
    tokens: int = 8
    patience: float = 4.0
    settle: float = 0.005


@dataclass(frozen=True)
class Item:
    """One piece of work; rows: tokens of each sequence in a step."""

    work: str
    part: str
    batch: int
    rows: int


@dataclass
class PrunedModel:
    """The same weights compact and masked, and the runners made of them so far: of the compact one by peer, of the masked one by dtype."""

    heads: Kept
    compact: Checkpoint
    masked: Checkpoint
    runners: dict[str, Any] = field(default_factory=dict)  # a Runner each, an EncoderEngine where encoders are compared
    references: dict[str, Runner] = field(default_factory=dict)

    @staticmethod
    def of(dense: Checkpoint, heads: Kept) -> PrunedModel:
        return PrunedModel(heads, cases.compact(dense, heads), cases.masked(dense, heads))

    @property
    def kept(self) -> int:
        return sum(map(len, self.heads))

    @property
    def kind(self) -> str:
        """dense where every head of the source is kept."""
        layers = self.compact.spec.layers
        return "dense" if all(layer.attention.heads == layer.attention.source_heads for layer in layers) else "compact"

    def close(self) -> None:
        """Let every engine made of it go."""
        self.runners.clear()
        self.references.clear()

    @property
    def source(self) -> Any:
        """What a peer is built of."""
        return self.compact

    def built(self, peer: Peer, threads: int) -> Any:
        """The runner a peer makes of it, built once; raises Skipped with the reason where it cannot be."""
        if reason := peer.refusal():
            raise Skipped(reason)
        if peer.name not in self.runners:
            self.runners[peer.name] = peer.build(self.source, peer.dtype, threads)
        return self.runners[peer.name]

    def reference(self, dtype: str, threads: int) -> Runner:
        """The masked model on plain PyTorch."""
        if dtype not in self.references:
            self.references[dtype] = build(self.masked, EngineSettings("torch", dtype, threads))
        return self.references[dtype]


@dataclass
class Outcome:
    """rows: what was measured or skipped; failed: a line for every gate that did not pass, those have no row; tried: the keys of both."""

    rows: list[Row] = field(default_factory=list)
    tried: list[tuple[object, ...]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


@dataclass
class Recorder:
    """What all work of a run shares. labels: what goes into every row as it is: bench, geometry, machine, versions, commit."""

    threads: int
    plan: TimingPlan
    labels: Mapping[str, Any]
    quiet: bool = False
    outcome: Outcome = field(default_factory=Outcome)
    digests: Digests = field(default_factory=Digests)

    def clock(self, calls: Mapping[str, Callable[[], object]], steps: Mapping[str, int], item: Item) -> dict[str, list[float]]:
        """Seconds of a step: a warm-up call of each, then rounds of those that are not too slow for rounds."""
        with bar(f"Timing {item.work}, {item.part}, batch {item.batch}", len(calls) * (1 + self.plan.rounds), quiet=self.quiet) as advance:
            settle = self.plan.settle
            samples = interleaved(calls, rounds=1, warmup=0, advance=advance, settle=settle)
            quick = {name: call for name, call in calls.items() if samples[name][0] <= self.plan.patience}
            samples |= interleaved(quick, rounds=self.plan.rounds, warmup=0, advance=advance, settle=settle)
        return {name: [second / steps[name] for second in seconds] for name, seconds in samples.items()}

    def add(
        self,
        model: PrunedModel,
        peer: Peer,
        item: Item,
        gate: Gate | None,
        samples: list[float],
        figures: dict[str, float],
        *,
        skipped: str | None = None,
    ) -> None:
        """The row of one peer, or the line of a gate that did not pass."""
        about = {
            **self.labels,
            **{"work": item.work, "part": item.part, "batch": item.batch, "rows": item.rows},
            **{"model": model.kind, "kept": model.kept, "heads": [len(heads) for heads in model.heads]},
            **{"engine": peer.engine, "dtype": peer.dtype, "threads": self.threads},
        }
        self.outcome.tried.append(key_of(about))
        if gate is not None and not gate.passed:
            where = f"{peer.name}, {_words(model, item)}"
            self.outcome.failed.append(f"{where}: answers differ by {gate.difference:.3g}, allowed {gate.limit:.3g}")
            return
        runner = model.runners.get(peer.name)
        if samples:
            about["versions"] = {**about["versions"], **versions(peer, runner)}
        row = Row(
            **about,
            skipped=skipped,
            gate=None if gate is None else gate.to_dict(),
            digest=self.digests.of(model.compact.weights),
            reference_digest=self.digests.of(model.masked.weights),
            instruction_set=instruction_set(),
            prepared=float(getattr(runner, "prepared", 0.0)),
            figures=figures,
            percentiles=percentiles(samples) if samples else {},
            samples=samples,
        )
        self.outcome.rows.append(row)


@dataclass
class Bench(Recorder):
    """The work on a model of one geometry."""

    shape: Geometry = field(kw_only=True)

    def compare(self, model: PrunedModel, peers: Sequence[Peer], item: Item) -> None:
        """Every peer at one piece of work on one model."""
        gates, skipped = self.gates(model, peers, item)
        passed = [peer for peer in peers if peer.name in gates and gates[peer.name].passed]
        samples = self._time(model, passed, item)
        for peer in peers:
            if peer.name in skipped:
                self.add(model, peer, item, None, [], {}, skipped=skipped[peer.name])
            else:
                self.add(model, peer, item, gates[peer.name], samples.get(peer.name, []), _figures(peer, item, samples, passed))

    def gates(self, model: PrunedModel, peers: Sequence[Peer], item: Item) -> tuple[dict[str, Gate], dict[str, str]]:
        """Each peer on the path of `item` against the masked model in one step on plain PyTorch; and why some have no gate."""
        vocab, score = model.compact.spec.vocab, item.work != "decode"
        rows, extra = (item.rows, item.rows) if score else (1, FED - 1)
        probe = Probe.draw(vocab, item.batch, rows, extra, seed=1)
        exact = probe.whole(model.reference("float32", self.threads))
        start = Probe(probe.ids[:1, :PLAIN_ROWS], probe.targets[:1, :PLAIN_ROWS], PLAIN_ROWS)
        narrow: list[float] = []
        gates, skipped = {}, {}
        with bar(f"Checking {_words(model, item)}", len(peers), quiet=self.quiet) as advance:
            for peer in peers:
                try:
                    runner = self.runner(model, peer)
                    found = probe.prefill(runner) if score else probe.decode(runner)
                except Skipped as reason:
                    skipped[peer.name] = str(reason)
                except Exception as error:
                    if peer.ours:
                        raise
                    skipped[peer.name] = failure(error)
                else:
                    if peer.dtype != "float32" and not narrow:
                        plain = start.whole(model.reference("bfloat16", self.threads))
                        narrow.append(tolerance(plain, exact[:1, :PLAIN_ROWS], "bfloat16"))
                    gates[peer.name] = gate_of(peer, difference(found, exact), narrow)
                advance()
        return gates, skipped

    def runner(self, model: PrunedModel, peer: Peer) -> Runner:
        runner: Runner = model.built(peer, self.threads)
        return runner

    def _time(self, model: PrunedModel, peers: Sequence[Peer], item: Item) -> dict[str, list[float]]:
        """Seconds of each peer, and of our own at one sequence under its name with " alone"."""
        batches = {peer.name: (peer, item.batch) for peer in peers}
        if item.work == "decode" and item.batch > 1:
            batches |= {f"{peer.name} alone": (peer, 1) for peer in peers if peer.ours}
        streams = {name: Stream(self.runner(model, peer), batch) for name, (peer, batch) in batches.items()}
        try:
            calls = {name: work(stream, model.compact, item, batches[name][1], self.plan.tokens) for name, stream in streams.items()}
            return self.clock({name: call for name, (call, _) in calls.items()}, {name: per for name, (_, per) in calls.items()}, item)
        finally:
            for stream in streams.values():
                stream.close()


def work(stream: Stream, checkpoint: Checkpoint, item: Item, batch: int, tokens: int) -> tuple[Callable[[], object], int]:
    """One call, and how many steps it is."""
    drawn = random_ids(checkpoint.spec.vocab, (batch, item.rows + 1), seed=2)
    ids, targets = drawn[:, :-1], drawn[:, 1:]
    if item.work != "decode":
        return (partial(stream.step, ids, "hidden") if item.part == "layers" else partial(stream.step, ids, "target_nll", targets)), 1
    steps = tokens if item.batch == 1 else max(1, tokens // 4)
    want: Any = "hidden" if item.part == "layers" else "next"
    return lambda: [stream.step(ids[:, :1], want) for _ in range(steps)], steps


def items_of(works: Iterable[str], part: str, batches: Sequence[int], shape: Geometry) -> list[Item]:
    """A segment of one sequence, and a token at every batch."""
    items = [Item("score", part, 1, shape.rows)] if "score" in works else []
    return items + ([Item("decode", part, batch, 1) for batch in batches] if "decode" in works else [])


def failure(error: Exception) -> str:
    """Another project's failure in a line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0][:150]}"


def versions(peer: Peer, runner: object) -> dict[str, str]:
    """Of the packages a peer is made of, and what it says of those of another environment."""
    return {package: metadata.version(package) for package in peer.packages} | getattr(runner, "versions", {})


def gate_of(peer: Peer, found: float, narrow: list[float]) -> Gate:
    against = "masked, torch, float32"
    if peer.dtype == "float32":
        return Gate(found, LOG_PROB_LIMIT, against)
    slack = INT8_SLACK if peer.dtype == "int8" else 1.0
    return Gate(found, slack * narrow[0], f"{against}; rule of bfloat16 times {slack:g}, its plain error of {PLAIN_ROWS} rows")


def _figures(peer: Peer, item: Item, samples: Mapping[str, list[float]], passed: Sequence[Peer]) -> dict[str, float]:
    mine = samples.get(peer.name)
    if mine is None:
        return {}
    figures = {f"times_{ours.name}": ratio(mine, samples[ours.name]) for ours in passed if ours.ours}
    if f"{peer.name} alone" in samples:
        figures["tokens_gained"] = item.batch * ratio(samples[f"{peer.name} alone"], mine)
    return figures


def ratio(slower: Sequence[float], faster: Sequence[float]) -> float:
    """Median over the rounds of slower / faster; of the medians where one of them has a single sample."""
    if len(slower) == len(faster):
        return paired_ratio(slower, faster)
    return float(np.median(slower) / np.median(faster))


def _words(model: PrunedModel, item: Item) -> str:
    return f"{item.work}, {item.part}, {model.kept} heads, batch {item.batch}"
