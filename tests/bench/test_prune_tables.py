"""The kept runs of trials: their tables stand in the documentation as they are in the results."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bench.core.rows import RESULTS, ROOT
from bench.suites.prune import tables as prune_tables
from bench.suites.prune.data import main as data_table

KEPT = sorted(RESULTS.glob("prune-*.json"))


def test_a_table_of_two_orders() -> None:
    def trial(k: int, dev: float) -> dict[str, object]:
        return {"k": k, "dev": {"score": dev}, "test": {"score": dev - 0.1}}

    orders = [
        {"order": name, "trials": [trial(1, a), trial(2, b)], "best": trial(2, b)} for name, a, b in (("x", 0.5, 0.6), ("y", 0.3, 0.4))
    ]
    lines = prune_tables.table({"dense": trial(0, 0.7), "orders": orders}).split("\n")
    assert lines[2] == "| 0 (dense) | 70.00 | 60.00 | 70.00 | 60.00 |"
    assert lines[4] == "| 2 | **60.00** | **50.00** | **40.00** | **30.00** |"
    assert {line.count("|") for line in lines} == {6}


@pytest.mark.parametrize("path", KEPT, ids=[path.stem for path in KEPT])
def test_documented_tables_are_the_results(path: Path) -> None:
    summary = json.loads(path.read_text())
    text = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
    assert prune_tables.table(summary) in text
    assert all((RESULTS / name).exists() for name in re.findall(r"bench/results/([\w.-]+)", text))
    for order in summary["orders"]:
        assert order["best"] == max(order["trials"], key=lambda trial: (trial["dev"]["score"], trial["k"]))


def test_what_is_in_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").write_text("x\tB-y\nz\tO\n")
    (tmp_path / "slots").mkdir()
    (tmp_path / "slots" / "seq.in").write_text("a b\n")
    (tmp_path / "slots" / "seq.out").write_text("O B-c\n")
    assert data_table([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert f"| {tmp_path.name}/a | 1 | 2 | 2 |" in out and f"| {tmp_path.name}/slots | 1 | 2 | 2 |" in out
    (tmp_path / "b").write_text("x\n")
    assert data_table([str(tmp_path)]) == 1
    assert "b:1: expected" in capsys.readouterr().err
