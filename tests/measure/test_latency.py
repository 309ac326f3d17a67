"""`latency`, `throughput` and `flops` through the command, on a tiny model: lines, JSON keys, and the gate."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from bench import cli
from bench.core import cases
from bench.core.cases import TINY
from engine.backends.torch.runner import TorchRunner
from engine.checkpoint import save
from engine.errors import EngineError
from engine.measure import latency as serving

SHORT = ("--input-len", 5, "--output-len", 7, "--quiet", "--threads", 1)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "pruned"
    save(cases.compact(cases.dense_model(TINY, vocabulary=True), cases.kept_lists(TINY)[4]), path)
    return path


def test_latency_prints_and_writes_what_vllm_does(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "latency.json"
    done = run("latency", model, "--batch-size", 2, "--num-iters-warmup", 1, "--num-iters", 4, "--output-json", out, *SHORT)
    assert done.exit_code == 0, done.exception
    assert re.search(r"^Avg latency: [\d.e-]+ seconds$", done.output, re.MULTILINE)
    assert re.findall(r"^(\d+)% percentile latency: [\d.e-]+ seconds$", done.output, re.MULTILINE) == ["10", "25", "50", "75", "90", "99"]
    found = json.loads(out.read_text())
    assert len(found["latencies"]) == 4
    assert found["avg_latency"] == pytest.approx(np.mean(found["latencies"]))
    assert set(found["percentiles"]) == {"10", "25", "50", "75", "90", "99"}
    assert found["gate"]["difference"] <= found["gate"]["limit"] == 2e-4
    assert found["heads"] == [3, 0, 1] and found["dtype"] == "float32" and found["threads"] == 1
    assert {"digest", "machine", "versions", "commit", "backend", "input_len", "output_len", "batch_size", "std_latency"} <= set(found)


def test_throughput_counts_tokens(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "throughput.json"
    done = run("throughput", model, "--num-prompts", 3, "--output-json", out, *SHORT)
    assert done.exit_code == 0, done.exception
    assert re.search(r"^Throughput: [\d.]+ requests/s, [\d.]+ total tokens/s, [\d.]+ output tokens/s$", done.output, re.MULTILINE)
    found = json.loads(out.read_text())
    assert (found["num_requests"], found["total_num_tokens"]) == (3, 3 * (5 + 7))
    assert found["requests_per_second"] == pytest.approx(3 / found["elapsed_time"])
    assert found["tokens_per_second"] == pytest.approx(36 / found["elapsed_time"])
    assert found["output_tokens_per_second"] == pytest.approx(21 / found["elapsed_time"])
    assert "gate" in found and "digest" in found


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_dtypes_pass_their_gate(model: Path, dtype: str) -> None:
    assert run("throughput", model, "--num-prompts", 1, "--dtype", dtype, *SHORT).exit_code == 0


@pytest.mark.parametrize("verb", ["latency", "throughput"])
@pytest.mark.parametrize("poison", [0.5, np.nan])
def test_a_decode_that_differs_from_the_forward_pass_is_not_timed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, poison: float
) -> None:
    original = TorchRunner.step

    def wrong(self: TorchRunner, batch: Any) -> Any:
        result = original(self, batch)
        if batch.want == "log_probs":
            result.log_probs[:, 0] += poison
            result.log_probs[:, 1:] -= poison
        return result

    monkeypatch.setattr(TorchRunner, "step", wrong)
    monkeypatch.setattr(serving, verb, lambda *_, **__: pytest.fail("timed"))
    done = run(verb, model, "--backend", "torch", "--output-json", tmp_path / "out.json", *SHORT)
    assert done.exit_code == 1 and isinstance(done.exception, EngineError) and "gate" in str(done.exception)
    assert not (tmp_path / "out.json").exists()


def test_flops_of_the_published_models() -> None:
    done = run("flops", "--json")
    assert done.exit_code == 0, done.exception
    found = json.loads(done.output)
    assert list(found) == ["128 heads", "106 heads", "87 heads", "59 heads"]
    for name, heads in zip(found, (128, 106, 87, 59), strict=True):
        layers = sum(layer["decode"]["needed"] for layer in found[name]["layers"])
        assert layers == 2 * 430_272 * heads  # arXiv 2110.03252: h · dh · (4 d + 2 N + 3 (M + 1)) per token
        assert found[name]["nominal_speedup"]["decode_layers"] == pytest.approx(128 / heads)


def test_flops_of_a_model_stand_beside_its_dense_parent(model: Path) -> None:
    done = run("flops", model, "--json", "--input-len", 12)
    assert done.exit_code == 0, done.exception
    assert json.loads(done.output)["this model"]["nominal_speedup"]["prefill_layers"] == pytest.approx(12 / 4)
    table = run("flops", model)
    assert table.exit_code == 0 and "every head" in table.output and "persistent" in table.output


def test_a_model_that_is_not_there_is_one_clear_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", "latency", str(tmp_path / "nothing")])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 1
    assert "nothing" in capsys.readouterr().err


def test_wrong_usage_is_status_2() -> None:
    assert run("latency").exit_code == 2
    assert run("throughput", "x", "--num-prompts", 0).exit_code == 2
    assert run("report").exit_code == 2


def test_headcount_bench_is_the_same_command(model: Path) -> None:
    from engine.cli import app

    done = CliRunner().invoke(app, ["bench", "flops", str(model), "--json"])
    assert done.exit_code == 0, done.exception
    assert "this model" in json.loads(done.output)
    assert CliRunner().invoke(app, ["bench", "latency"]).exit_code == 2
