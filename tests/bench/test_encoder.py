"""`python -m bench encoder`, whole, on the tiny geometry; no assertion about a time; missing engines are rows with a reason."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from bench import cli
from bench.core.rows import Row, read_rows
from bench.peers import encoder_transformers
from bench.peers.base import Skipped
from bench.peers.encoder_table import PEERS
from bench.peers.encoder_transformers import TransformersEncoder
from bench.suites.encoder import bench as encoder
from bench.suites.encoder import cases as encoder_cases
from bench.suites.encoder import report as encoder_report
from bench.suites.encoder.cases import BERT, TINY, Texts
from bench.suites.encoder.files import EncoderFiles
from engine.checkpoint.surgery import prune
from engine.errors import InputError
from engine.measure.clock import Reported, interleaved
from engine.spec.cost import model_cost

OTHERS = {"torch float32": (), "onnxruntime float32": ("onnx", "onnxruntime"), "openvino float32": ("onnx", "openvino")}
OTHERS |= {"ctranslate2 float32": ("ctranslate2",)}
OURS = ["cpu float32", "cpu bfloat16", "cpu int8"]


def run(out: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["encoder", "--geometry", "tiny", "--quick", "--quiet", "--out", str(out), *arguments])


def of(rows: list[Row], **wanted: Any) -> list[Row]:
    return [row for row in rows if all(getattr(row, name) == value for name, value in wanted.items())]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("encoder")
    peers = [word for name in ("cpu", *OTHERS, "openvino:int8") for word in ("--peer", name.replace(" ", ":"))]
    done = run(out, "--work", "one", "--work", "ragged", "--threads", "1", "--threads", "2", *peers)
    assert done.exit_code == 0, (done.output, done.exception)  # every gate passed
    assert "cpu bfloat16" in done.output
    if find_spec("openvino") and find_spec("onnx"):
        assert "OpenVINO quantises through nncf" in done.output
    return out


@pytest.fixture(scope="module")
def rows(results: Path) -> list[Row]:
    return read_rows(results / "encoder.jsonl")


def test_every_engine_has_a_row_for_every_work(rows: list[Row]) -> None:
    assert len({row.key for row in rows}) == len(rows)
    for work in ("one", "ragged"):
        for kept in (9, 6):
            for threads in (1, 2):
                found = [row.name for row in of(rows, work=work, kept=kept, threads=threads)]
                left_out = (work, kept, threads) == ("ragged", 9, 2)
                assert found == ([] if left_out else [*OURS, "torch float32", *list(OTHERS)[1:3], "openvino int8", "ctranslate2 float32"])


def test_a_figure_has_its_gate_and_a_missing_engine_its_reason(rows: list[Row]) -> None:
    for row in rows:
        installed = all(find_spec(package) for package in OTHERS.get(row.name, ()))
        if not installed:
            assert row.skipped is not None and "not installed" in row.skipped and not row.samples
        elif row.skipped is None:
            assert row.gate is not None and row.gate["difference"] <= row.gate["limit"] and min(row.samples) > 0
            assert (row.gate["limit"] == 2e-4) == (row.dtype == "float32")
            assert row.figures[f"times_cpu {row.dtype}"] > 0 and (row.engine != "cpu" or row.figures[f"times_{row.name}"] == 1)
        else:
            assert row.engine == "openvino" or (row.engine, row.kept) == ("ctranslate2", 6)


def test_the_ratio_of_flops_is_counted(rows: list[Row]) -> None:
    dense = encoder_cases.dense_encoder(TINY)
    pruned = prune(dense, encoder_cases.pruned_heads(TINY))
    for work in ("one", "ragged"):
        lengths = encoder_cases.texts_of(TINY, work).lengths
        ours, all_heads = (sum(model_cost(m.spec, rows=n).prefill().needed for n in lengths) for m in (pruned, dense))
        for row in of(rows, work=work, engine="cpu"):
            assert row.figures["flops_of_dense"] == (1.0 if row.kept == 9 else pytest.approx(ours / all_heads))
            assert row.figures["tokens"] == sum(lengths)
    share = [row for row in of(rows, kept=6, threads=1, engine="cpu") if "of_dense" in row.figures]
    assert len(share) == 6 and 0.5 < share[0].figures["flops_of_dense"] < 1


def test_the_shape_is_the_one_of_the_issue() -> None:
    heads = encoder_cases.pruned_heads(BERT)
    assert [len(kept) for kept in heads] == [12, 7, 5, 4, 6, 6, 3, 4, 5, 2, 3, 4] and sum(map(len, heads)) == 61
    assert any(kept != tuple(range(len(kept))) for kept in heads) and BERT.head_dim == 64
    batch = encoder_cases.texts_of(BERT, "ragged")
    assert len(batch.ids) == 32 and min(batch.lengths) >= 8 and max(batch.lengths) <= 128 and len(set(batch.lengths)) > 16
    assert encoder_cases.texts_of(BERT, "one").lengths == [128]
    ids, mask = batch.padded()
    assert mask.sum() == batch.tokens and (ids[mask == 0] == 0).all()
    assert np.array_equal(batch.visible(ids), np.concatenate(batch.ids))
    chosen = encoder.some_of(batch).lengths
    assert max(chosen) == max(batch.lengths) and min(chosen) == min(batch.lengths)


def test_wrong_heads_get_no_figure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(encoder, "prune", lambda dense, kept: prune(dense, [range(len(heads)) for heads in kept]))
    done = run(tmp_path, "--peer", "cpu:float32")
    assert done.exit_code == 1 and "cpu float32, one, encoder, 6 heads" in str(done.exception)
    assert [row.kept for row in read_rows(tmp_path / "encoder.jsonl")] == [9]


def test_an_engine_that_breaks_or_would_take_too_long_is_skipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr("bench.peers.encoder_torch.PlainEncoder.forward", broken)
    assert run(tmp_path, "--peer", "cpu:float32", "--peer", "torch:float32").exit_code == 0
    assert {row.skipped for row in of(read_rows(tmp_path / "encoder.jsonl"), engine="torch")} == {"RuntimeError: first line"}
    monkeypatch.setattr(encoder, "LONGEST_CALL", 0.0)
    assert run(tmp_path, "--peer", "cpu:float32", "--work", "ragged").exit_code == 0
    found = of(read_rows(tmp_path / "encoder.jsonl"), work="ragged")
    assert found and all(row.skipped and "of the 5 texts took" in row.skipped and not row.samples for row in found)


def test_rows_as_json_and_unknown_words(tmp_path: Path) -> None:
    done = run(tmp_path, "--peer", "cpu:float32", "--json")
    assert [row["kept"] for row in json.loads(done.output)] == [9, 6]
    for arguments in (["--work", "walk"], ["--peer", "abacus"], ["--geometry", "round"]):
        assert isinstance(run(tmp_path, *arguments).exception, InputError), arguments


WORKER = """
import json, sys
import numpy as np
print(json.dumps({"transformers": "4.0"}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if request.get("file"):
        ids = np.array(request["ids"])
        np.save(request["file"], np.repeat(ids[:, :, None], 2, axis=2).astype(np.float32))
    if request.get("ids") == [[7]]:
        sys.exit(3)
    print(json.dumps({"error": "ValueError: no"} if request.get("ids") == [[8]] else {"seconds": 1.5}), flush=True)
"""


def test_a_worker_says_how_long_it_took(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    files = EncoderFiles(encoder_cases.dense_encoder(TINY), tmp_path / "files")
    monkeypatch.setattr(encoder_transformers, "PYTHON", tmp_path / "none")
    with pytest.raises(Skipped, match="make bench-peers"):
        TransformersEncoder(files, "float32", 1)
    monkeypatch.setattr(encoder_transformers, "PYTHON", Path(sys.executable))
    monkeypatch.setattr(encoder_transformers, "WORKER", script)
    worker = TransformersEncoder(files, "float32", 1)
    texts = Texts((np.array([4, 5]), np.array([6])))
    assert worker.versions == {"transformers": "4.0"} and "pruned_heads" not in (files.hugging_face() / "config.json").read_text()
    assert worker.hidden(texts).tolist() == [[4, 4], [5, 5], [6, 6]]
    assert worker.call(texts)() == Reported(1.5)
    assert interleaved({"a": worker.call(texts)}, rounds=2, warmup=1, advance=lambda: None) == {"a": [1.5, 1.5]}
    with pytest.raises(RuntimeError, match="ValueError: no"):
        worker.call(Texts((np.array([8]),)))
    with pytest.raises(RuntimeError, match="status 3"):
        worker.call(Texts((np.array([7]),)))


def test_tables_follow_their_rows(rows: list[Row], results: Path, tmp_path: Path) -> None:
    ours, plain = (of(rows, work="one", kept=6, threads=1, dtype="float32", engine=engine)[0] for engine in ("cpu", "torch"))
    plain = replace(
        plain, figures={**plain.figures, "times_cpu float32": 1.3, "of_dense": 0.9}, percentiles={**plain.percentiles, "50": 0.215}
    )
    assert "| 1 of 12 tokens | 6 | 1 | cpu float32 | torch float32 | ≥ 1.2× | 1.30× | yes |" in encoder_report.targets([ours, plain])
    assert "| 1 of 12 tokens | 1 | torch float32 | – | 215 ms (1.30) | 0.90 | 0.80 |" in encoder_report.engines([ours, plain])
    assert encoder_report.targets([]) == encoder_report.engines([]) == ""
    readme = tmp_path / "README.md"
    readme.write_text("".join(f"<!-- bench:{name} -->\n<!-- /bench:{name} -->\n" for name in ("encoder-targets", "encoder-engines")))
    arguments = ["report", "--document", str(readme), "--results", str(results)]
    assert CliRunner().invoke(cli.app, [*arguments, "--write"]).exit_code == 0
    assert CliRunner().invoke(cli.app, [*arguments, "--check"]).exit_code == 0
    assert len({peer.name for peer in PEERS}) == len(PEERS)
