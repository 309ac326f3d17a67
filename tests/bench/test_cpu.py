"""`python -m bench cpu`, whole, on the tiny geometry; no assertion about a time."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from bench import cli
from bench.core import cases
from bench.core.machine import STEP, Machine, buffer_of
from bench.core.rows import Row, read_rows
from bench.peers.table import PEERS as PEERS_OF_TABLE
from bench.peers.table import taking_part
from bench.suites.cpu import growth as cpu_growth
from bench.suites.cpu import report as cpu_report
from bench.suites.cpu.limits import touched_bytes
from bench.suites.cpu.run import CpuRequest, memory_of
from engine.errors import EngineError, InputError

PEERS = ("--peer", "cpu:float32", "--peer", "cpu:bfloat16", "--peer", "published", "--peer", "openvino:int8")


def cpu(out: Path, *arguments: object) -> Result:
    fixed = ("cpu", "--geometry", "tiny", "--quick", "--quiet", "--threads", "1", *PEERS, "--out", out)
    return CliRunner().invoke(cli.app, [str(a) for a in (*fixed, *arguments)])


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cpu")
    works = [word for work in ("score", "decode", "share", "attention", "bandwidth", "growth") for word in ("--work", work)]
    done = cpu(out, "--part", "layers", "--part", "model", "--kept", 4, "--kept", 12, "--batch", 1, "--batch", 3, *works)
    assert done.exit_code == 0, done.output
    assert "the published algorithm" in done.output
    return out


@pytest.fixture(scope="module")
def rows(results: Path) -> list[Row]:
    return read_rows(results / "cpu.jsonl")


def of(rows: list[Row], **wanted: Any) -> list[Row]:
    return [row for row in rows if all(getattr(row, name) == value for name, value in wanted.items())]


def test_every_engine_has_a_row_for_every_work(rows: list[Row]) -> None:
    assert len({row.key for row in rows}) == len(rows)
    for part in ("layers", "model"):
        for kept in (4, 12):
            for work, batch in (("score", 1), ("decode", 1), ("decode", 3)):
                found = of(rows, part=part, kept=kept, work=work, batch=batch)
                assert [row.name for row in found] == ["cpu float32", "cpu bfloat16", "published float32", "openvino int8"]


def test_a_figure_has_its_gate_and_a_skipped_engine_its_reason(rows: list[Row]) -> None:
    for row in rows:
        if row.engine == "openvino":
            assert row.skipped and not row.samples and row.gate is None and not row.percentiles
        else:
            assert row.skipped is None and row.gate is not None and min(row.samples) > 0
            assert row.gate["difference"] <= row.gate["limit"]
            assert row.gate["limit"] == 2e-4 if row.dtype == "float32" else row.gate["limit"] > 2e-4
        assert len(row.digest) == 64 and set(row.commit) == {"id", "dirty"} and row.instruction_set


def test_ratios_are_to_each_of_our_precisions(rows: list[Row]) -> None:
    for row in of(rows, engine="published"):
        assert set(row.figures) == {"times_cpu float32", "times_cpu bfloat16"} and min(row.figures.values()) > 0
    for row in of(rows, work="decode", engine="cpu"):
        assert ("tokens_gained" in row.figures) == (row.batch > 1)
        assert row.figures[f"times_{row.name}"] == 1.0


def test_limits_have_what_they_are_held_against(rows: list[Row]) -> None:
    for row in of(rows, work="attention") + of(rows, work="bandwidth"):
        assert row.figures["peak"] > 0 and row.figures["share"] > 0
    shares = of(rows, work="score share", dtype="float32")
    assert [(row.kept, row.figures["share"]) for row in shares] == [(12, 1.0), (4, pytest.approx(1 / 3))]
    assert shares[0].figures["of_dense"] == 1.0


def test_growth_covers_rows_sequences_and_heads(rows: list[Row], results: Path) -> None:
    assert [row.rows for row in of(rows, work="growth rows")] == [12, 48]
    assert [row.batch for row in of(rows, work="growth batch")] == [1, 2, 4, 8, 16, 32, 64]
    assert [row.kept for row in of(rows, work="growth heads")] == [0, 3, 6, 9, 12]
    assert (results / "cpu-growth.png").read_bytes().startswith(b"\x89PNG")


def test_memory_is_the_peak_since_it_was_asked_for() -> None:
    before = cpu_growth.memory_now()
    if before is None:
        pytest.skip("no account of memory here")
    size = 64 << 20
    np.ones(size, np.uint8).sum()
    peak = cpu_growth.memory_peak()
    assert peak is not None and peak - before >= size // 2


def test_wrong_heads_get_no_figure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    right = cases.compact
    monkeypatch.setattr(cases, "compact", lambda dense, kept: right(dense, [range(len(heads)) for heads in kept]))
    done = cpu(tmp_path, "--work", "score", "--kept", 4)
    assert done.exit_code == 1 and "cpu float32, score, layers, 4 heads" in str(done.exception)
    assert {row.name for row in read_rows(tmp_path / "cpu.jsonl") if row.samples} <= {"cpu bfloat16"}


def test_a_peer_that_breaks_is_skipped_and_ours_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr("bench.peers.published.PublishedRunner.start", broken)
    assert cpu(tmp_path, "--work", "score", "--kept", 4).exit_code == 0
    skipped = of(read_rows(tmp_path / "cpu.jsonl"), engine="published")
    assert [row.skipped for row in skipped] == ["RuntimeError: first line"]
    monkeypatch.setattr("engine.backends.cpu.CpuRunner.step", broken)
    assert isinstance(cpu(tmp_path, "--work", "score", "--kept", 4).exception, RuntimeError)


def test_an_engine_too_slow_for_rounds_has_one_sample(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("bench.suites.cpu.run.TimingPlan", lambda **options: replace(cpu_plan(), patience=0.0))
    assert cpu(tmp_path, "--work", "score", "--kept", 4).exit_code == 0
    measured = [row for row in read_rows(tmp_path / "cpu.jsonl") if not row.skipped]
    assert measured and all(len(row.samples) == 1 for row in measured)


def cpu_plan() -> Any:
    from bench.suites.cpu.bench import TimingPlan

    return TimingPlan(rounds=2)


def test_unknown_words_are_errors(tmp_path: Path) -> None:
    for arguments in (["--work", "walk"], ["--kept", 5], ["--peer", "abacus"], ["--part", "half"]):
        assert isinstance(cpu(tmp_path, *arguments).exception, InputError), arguments
    assert list(tmp_path.iterdir()) == []


def test_our_own_take_part_whatever_is_named() -> None:
    named = [peer.name for peer in taking_part(PEERS_OF_TABLE, ["openvino:int8"])]
    assert named == ["cpu float32", "cpu bfloat16", "cpu int8", "openvino int8"]
    assert [peer.name for peer in taking_part(PEERS_OF_TABLE, ["cpu:int8", "published"])] == ["cpu int8", "published float32"]


def test_a_run_that_needs_more_memory_than_there_is_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("bench.core.memory.machine_bytes", lambda: 1 << 20)
    done = cpu(tmp_path, "--work", "decode", "--kept", 4, "--batch", 64)
    assert isinstance(done.exception, EngineError) and "for all engines at once" in str(done.exception)
    monkeypatch.setattr("bench.core.memory.machine_bytes", lambda: 25_000_000_000)
    monkeypatch.setattr("bench.peers.table.Peer.refusal", lambda peer: None)  # as if every engine were installed
    assert CpuRequest.of("s1", None, None, None, None, None, None, None, False).batches == (1, 16)
    assert memory_of(cases.S1, [128], PEERS_OF_TABLE, 64) > memory_of(cases.S1, [59], PEERS_OF_TABLE, 64)


def test_a_finished_model_lets_its_engines_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    closed: list[int] = []
    monkeypatch.setattr("bench.suites.cpu.bench.PrunedModel.close", lambda model: closed.append(len(model.runners)))
    assert cpu(tmp_path, "--work", "score", "--kept", 4, "--kept", 12).exit_code == 0
    assert len(closed) == 2 and min(closed) > 0


def test_a_token_touches_weights_and_rings() -> None:
    model = cases.compact(cases.dense_model(cases.TINY, vocabulary=False), ((0,), (), ()))
    hidden, dim, window, persistent = 24, 6, 13, 17
    matrices = 4 * hidden * dim + window * dim + 2 * persistent * dim + 4 * dim  # projections, distances, persistent, biases and zero rows
    vectors = 3 * (2 * hidden + hidden)  # each layer's norm and output bias
    assert touched_bytes(model, "float32") == 4 * (matrices + vectors + 2 * window * dim)
    assert touched_bytes(model, "float32") - touched_bytes(model, "bfloat16") == 2 * matrices
    assert touched_bytes(model, "int8") < touched_bytes(model, "bfloat16")


@pytest.mark.parametrize("threads", [1, 3])
def test_the_machine_does_what_is_counted(threads: int) -> None:
    with Machine(threads) as machine:
        assert machine.multiply_add(200) == 2 * machine.multiply_add(100) > 0
        buffer = buffer_of(10 * STEP + 1)
        assert buffer.nbytes == 11 * STEP
        machine.read(buffer, 2)
        words = np.random.default_rng(0).integers(0, 2**63, 2 * STEP // 8, np.uint64)
        found = machine._library.read_all(words.ctypes.data, words.nbytes)
        assert found == reduce(lambda a, b: a ^ b, words.tolist())


def test_tables_follow_their_rows(rows: list[Row], results: Path, tmp_path: Path) -> None:
    ours, published = of(rows, work="score", kept=4, part="layers", dtype="float32")
    ours = replace(ours, percentiles={**ours.percentiles, "50": 0.010})
    slow = replace(published, figures={"times_cpu float32": 21.5}, percentiles={**published.percentiles, "50": 0.215})
    assert "| a segment | 4 | 1 | cpu float32 | the published algorithm | ≥ 20× | 21.50× | yes |" in cpu_report.targets([ours, slow])
    assert "| layers | 4 | 1 | published float32 | 215 ms (21.50) |" in cpu_report.peers([ours, slow])
    assert cpu_report.targets([]) == cpu_report.peers([]) == ""
    readme = tmp_path / "README.md"
    readme.write_text("".join(f"<!-- bench:{name} -->\n<!-- /bench:{name} -->\n" for name in ("cpu-targets", "cpu-peers")))
    arguments = ["report", "--document", str(readme), "--results", str(results)]
    assert CliRunner().invoke(cli.app, [*arguments, "--write"]).exit_code == 0
    assert CliRunner().invoke(cli.app, [*arguments, "--check"]).exit_code == 0
    readme.write_text(readme.read_text().replace("| layers |", "| part |"))
    assert isinstance(CliRunner().invoke(cli.app, [*arguments, "--check"]).exception, EngineError)
