"""`python -m bench s1` and `sparsity`, whole, on the tiny geometry: rows, tables, the picture, and gates that do not pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from bench import cli
from bench.core import cases
from bench.core import document as documents
from bench.core.cases import Geometry
from bench.core.rows import read_rows
from bench.suites.tables import TABLES
from engine.checkpoint import Checkpoint
from engine.errors import CheckpointError, EngineError

ENGINES = [("dense", 12), ("masked", 8), ("compact", 8), ("masked", 4), ("compact", 4)]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def s1(out: Path, *arguments: object) -> Result:
    return run("s1", "--geometry", "tiny", "--quick", "--quiet", "--backend", "torch", "--threads", "1", "--out", out, *arguments)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results")
    done = s1(out, "--part", "layers", "--part", "model", "--batch", 1, "--batch", 3)
    assert done.exit_code == 0, done.output
    assert "nominal" in done.output
    return out


def test_every_engine_has_a_row_in_every_case(results: Path) -> None:
    rows = read_rows(results / "s1.jsonl")
    expected = {(p, w, b, m, k) for p in ("layers", "model") for w in ("score", "decode") for b in (1, 3) for m, k in ENGINES}
    assert {(r.part, r.work, r.batch, r.model, r.kept) for r in rows} == expected
    assert len(rows) == len(expected)


def test_rows_say_what_they_are_to_be_judged_by(results: Path) -> None:
    for row in read_rows(results / "s1.jsonl"):
        assert len(row.samples) == 3 and min(row.samples) > 0
        assert row.gate is not None and 0 <= row.gate["difference"] <= row.gate["limit"] == 2e-4
        assert len(row.digest) == len(row.reference_digest) == 64
        assert (row.digest == row.reference_digest) == (row.model != "compact")
        assert (row.engine, row.dtype, row.threads, row.geometry) == ("torch", "float32", 1, "tiny")
        assert set(row.percentiles) == {"10", "25", "50", "75", "90", "99"}
        assert set(row.machine) == {"system", "processor", "cores", "instruction_sets"}
        assert row.versions["torch"] and row.versions["python"]
        assert set(row.commit) == {"id", "dirty"}
        figures = row.figures
        assert figures["efficiency"] == pytest.approx(figures["achieved"] / figures["nominal"])
        assert figures["flops_executed"] >= figures["flops_needed"] > 0


def test_nominal_speed_ups_follow_the_heads(results: Path) -> None:
    for row in read_rows(results / "s1.jsonl"):
        if row.part == "layers":
            assert row.figures["nominal"] == pytest.approx(12 / row.kept if row.model == "compact" else 1.0)
        elif row.model == "compact":
            assert 1 < row.figures["nominal"] < 12 / row.kept  # the vocabulary is not pruned
        if row.model == "dense":
            assert row.figures["achieved"] == 1.0


def test_rows_name_no_host_and_no_path(results: Path) -> None:
    import platform

    text = (results / "s1.jsonl").read_text()
    assert str(Path.home()) not in text and str(Path(__file__).parents[2]) not in text and str(results) not in text
    assert f'"{platform.node()}"' not in text


def test_a_picture_of_each_part_is_drawn(results: Path) -> None:
    for part in ("layers", "model"):
        assert (results / f"s1-{part}.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_run_replaces_its_rows_and_no_others(results: Path, tmp_path: Path) -> None:
    (tmp_path / "s1.jsonl").write_bytes((results / "s1.jsonl").read_bytes())
    before = read_rows(tmp_path / "s1.jsonl")
    assert s1(tmp_path, "--batch", 3).exit_code == 0
    after = read_rows(tmp_path / "s1.jsonl")
    assert len(after) == len(before) and {r.key for r in after} == {r.key for r in before}
    same = [r for r in after if r.samples in [b.samples for b in before]]
    assert {(r.part, r.batch) for r in same} == {("layers", 1), ("model", 1), ("model", 3)}


def test_narrow_dtypes_have_their_own_rows(results: Path, tmp_path: Path) -> None:
    done = s1(tmp_path, "--batch", 2, "--dtype", "bf16")
    assert done.exit_code == 0, done.output
    rows = read_rows(tmp_path / "s1.jsonl")
    assert {row.dtype for row in rows} == {"bfloat16"} and len(rows) == 10
    assert all(row.gate is not None and 2e-4 < row.gate["limit"] < 1 for row in rows)


def test_sparsity_takes_levels(tmp_path: Path) -> None:
    arguments = ("--geometry", "tiny", "--quick", "--quiet", "--backend", "torch", "--batch", 1, "--out", tmp_path)
    done = run("sparsity", "--levels", "0,50,75", *arguments)
    assert done.exit_code == 0, done.output
    assert [row.kept for row in read_rows(tmp_path / "sparsity.jsonl") if row.model != "masked"] == [12, 6, 3] * 2
    assert isinstance(run("sparsity", "--levels", "0,x", *arguments).exception, EngineError)


def test_a_quick_run_writes_nothing_unasked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("bench.core.rows.RESULTS", tmp_path)
    assert run("s1", "--geometry", "tiny", "--quick", "--quiet", "--backend", "torch", "--batch", 1).exit_code == 0
    assert list(tmp_path.iterdir()) == []


def first_heads(dense: Checkpoint, kept: cases.Kept) -> Checkpoint:
    """The planted bug of the published inference code: as many heads as are kept, but the first ones."""
    return cases.prune(dense, [tuple(range(len(heads))) for heads in kept])


def test_wrong_heads_get_no_figure(monkeypatch: pytest.MonkeyPatch, results: Path, tmp_path: Path) -> None:
    (tmp_path / "s1.jsonl").write_bytes((results / "s1.jsonl").read_bytes())
    monkeypatch.setattr(cases, "compact", first_heads)
    done = s1(tmp_path, "--batch", 1)
    assert done.exit_code == 1
    assert isinstance(done.exception, EngineError) and "compact 4, layers, decode, batch 1" in str(done.exception)
    left = [r for r in read_rows(tmp_path / "s1.jsonl") if r.part == "layers" and r.batch == 1]
    assert left and "compact" not in {r.model for r in left}  # not even the earlier figure
    assert "–" in done.output


def test_without_a_dense_figure_there_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    original = cases.dense_model

    def poisoned(shape: Geometry, **options: Any) -> Checkpoint:
        dense = original(shape, **options)
        weights = dict(dense.weights)
        weights["layers.1.attention.query"] = np.full_like(weights["layers.1.attention.query"], np.nan)
        return Checkpoint(dense.spec, weights)

    monkeypatch.setattr(cases, "dense_model", poisoned)
    done = s1(tmp_path, "--batch", 1)
    assert done.exit_code == 1 and "differ by nan" in str(done.exception)
    assert read_rows(tmp_path / "s1.jsonl") == []
    assert not (tmp_path / "s1-layers.png").exists()


def test_unknown_words_are_errors(tmp_path: Path) -> None:
    for arguments in (["--part", "half"], ["--dtype", "float8"], ["--backend", "quantum"], ["--geometry", "s9"]):
        assert isinstance(s1(tmp_path, *arguments).exception, EngineError), arguments
    assert list(tmp_path.iterdir()) == []


def document(path: Path, name: str = "s1-layers") -> Path:
    path.write_text(f"# Title\n\nbefore\n<!-- bench:{name} -->\n<!-- /bench:{name} -->\nafter\n")
    return path


def test_tables_are_written_checked_and_a_change_is_found(results: Path, tmp_path: Path) -> None:
    readme = document(tmp_path / "README.md")
    arguments = ("--document", readme, "--results", results)
    assert run("report", "--check", *arguments).exit_code == 1
    assert run("report", "--write", *arguments).exit_code == 0
    text = readme.read_text()
    assert text.startswith("# Title\n\nbefore\n<!-- bench:s1-layers -->\n") and text.endswith("<!-- /bench:s1-layers -->\nafter\n")
    assert "| a segment | 3 | 4 |" in text and "3.00×" in text
    checked = run("report", "--check", *arguments)
    assert checked.exit_code == 0 and "1 tables agree" in checked.output
    assert run("report", "--write", *arguments).output.strip().endswith("up to date")
    readme.write_text(text.replace("3.00×", "4.00×", 1))
    changed = run("report", "--check", *arguments)
    assert changed.exit_code == 1 and "4.00×" in str(changed.exception)


def test_markers_that_cannot_be_filled_are_errors(results: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no such table"):
        documents.check(document(tmp_path / "unknown.md", "s2"), TABLES, results)
    with pytest.raises(EngineError, match="rows to make it from"):
        documents.check(document(tmp_path / "empty.md", "sparsity-layers"), TABLES, results)
    half = tmp_path / "half.md"
    half.write_text("<!-- bench:s1-layers -->\n")
    with pytest.raises(EngineError, match="closed"):
        documents.check(half, TABLES, results)
    with pytest.raises(CheckpointError):
        documents.check(tmp_path / "none.md", TABLES, results)
    assert isinstance(run("report", "--check", "--write").exception, SystemExit)


def test_a_row_that_is_none_is_an_error(results: Path, tmp_path: Path) -> None:
    path = tmp_path / "s1.jsonl"
    first = json.loads((results / "s1.jsonl").read_text().splitlines()[0])
    for text in ("{", "[]", json.dumps({**first, "extra": 1}), json.dumps({k: v for k, v in first.items() if k != "gate"})):
        path.write_text(text + "\n")
        with pytest.raises(CheckpointError, match="line 1"):
            read_rows(path)
