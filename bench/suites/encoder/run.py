"""One run of `python -m bench encoder`: what was asked for, then threads by threads, work by work; rows after each of them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bench.core import rows
from bench.core.rows import Row
from bench.peers.encoder_table import PEERS
from bench.peers.table import Peer, taking_part
from bench.suites.cpu.bench import Outcome, TimingPlan
from bench.suites.encoder import cases as encoder_cases
from bench.suites.encoder import report as encoder_report
from bench.suites.encoder.bench import EncoderBench, EncoderModel
from bench.suites.encoder.cases import EncoderShape
from bench.suites.encoder.report import FILE
from engine.errors import EngineError, InputError, Problem
from engine.measure.clock import bar
from engine.measure.provenance import provenance

WORKS = ("one", "ragged")
QUICK_PEERS = ("cpu", "torch:float32", "onnxruntime", "openvino:float32")


@dataclass(frozen=True)
class EncoderRequest:
    """The work of a run."""

    shape: EncoderShape
    works: tuple[str, ...]
    peers: tuple[Peer, ...]
    threads: tuple[int, ...]
    plan: TimingPlan

    @staticmethod
    def of(
        geometry: str,
        works: Sequence[str] | None,
        peers: Sequence[str] | None,
        threads: Sequence[int] | None,
        rounds: int | None,
        quick: bool,
    ) -> EncoderRequest:
        """From the words a user gives; raises InputError naming all that are unknown."""
        shape = encoder_cases.shape_of(geometry)
        engines = {name for peer in PEERS for name in (peer.engine, f"{peer.engine}:{peer.dtype}")}
        problems = [Problem("work", " or ".join(WORKS), repr(word)) for word in works or [] if word not in WORKS]
        problems += [Problem("peer", ", ".join(sorted(engines)), repr(word)) for word in peers or [] if word not in engines]
        if problems:
            raise InputError(problems)
        wanted = peers or (QUICK_PEERS if quick else sorted(engines))
        plan = TimingPlan(rounds=2, patience=1.0) if quick else TimingPlan(rounds=5, patience=2.0)
        return EncoderRequest(
            shape=shape,
            works=tuple(works or (WORKS[:1] if quick else WORKS)),
            peers=taking_part(PEERS, wanted),
            threads=tuple(threads or ([1] if quick else [1, 2])),
            plan=plan if rounds is None else replace(plan, rounds=rounds),
        )


def run(asked: EncoderRequest, out: Path | None, *, quiet: bool, as_json: bool) -> None:
    """Measure, print the tables, keep the rows in out/encoder.jsonl; raises EngineError for gates that did not pass.

    The dense model encodes the ragged batch on the first number of threads only: seconds a call, engine by engine. The models' files, of
    BERT's size 3 GB, stand in the system's temporary folder meanwhile.
    """
    labels = {"bench": "encoder", "geometry": asked.shape.name, **provenance()}
    failed: list[str] = []
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        with bar("Drawing weights", 1, quiet=quiet):
            dense = encoder_cases.dense_encoder(asked.shape)
            lists = (asked.shape.every, encoder_cases.pruned_heads(asked.shape))
            models = [EncoderModel.cut(dense, heads, Path(folder)) for heads in lists]
        for threads in asked.threads:
            bench = EncoderBench(threads, asked.plan, labels, quiet, shape=asked.shape)
            for work in asked.works:
                both = work == "one" or threads == asked.threads[0]
                bench.compare(models if both else models[1:], asked.peers, work)
                if out is not None:
                    rows.replace_rows(out / FILE, bench.outcome.tried, bench.outcome.rows)
                failed += bench.outcome.failed
                found += bench.outcome.rows
                bench.outcome = Outcome()
            for model in models:
                model.runners.clear()
    if as_json:
        print(json.dumps([asdict(row) for row in found], indent=2))
    else:
        print("\n".join(filter(None, (encoder_report.engines(found), encoder_report.targets(found)))))
    if failed:
        raise EngineError(["gates did not pass, and what they guard has no figure:", *failed])
