"""`startup` through the command on a tiny model: stages that add up, the gate's facts, and a wrong token refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench import cli
from bench.core import cases
from bench.core.cases import TINY
from engine.checkpoint import save
from engine.errors import EngineError
from engine.measure import startup

STAGES = ["python", "imports", "load", "first token", "total", "processor time"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "dense"
    save(cases.dense_model(TINY, vocabulary=True), path)
    return path


def test_stages_add_up(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "startup.json"
    done = CliRunner().invoke(cli.app, ["startup", str(model), "--rounds", "2", "--threads", "1", "--quiet", "--output-json", str(out)])
    assert done.exit_code == 0, done.exception
    assert re.findall(r"^([a-z ]+): [\d.]+ s \(least [\d.]+\)$", done.output, re.MULTILINE) == STAGES
    found = json.loads(out.read_text())
    assert len(found["samples"]) == 2 and found["backend"] == "cpu" and found["gate"]["difference"] <= found["gate"]["limit"]
    for sample in found["samples"]:
        assert list(sample) == STAGES and all(seconds > 0 for seconds in sample.values())
        assert sum(sample[name] for name in STAGES[:4]) == pytest.approx(sample["total"])


def test_another_token_is_no_figure(model: Path) -> None:
    with pytest.raises(EngineError, match="expected 64"):
        startup.measure(str(model), "float32", 1, rounds=1, expected=64, quiet=True)
    with pytest.raises(EngineError, match="no such thing"):
        startup.measure("no such thing", "float32", 1, rounds=1, expected=0, quiet=True)
