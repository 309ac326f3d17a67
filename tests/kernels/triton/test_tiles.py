"""Tiles of a device: measured by the same launchers, kept in a file, and a damaged file is an error with its path."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed: pip install 'headcount[gpu]'", exc_type=ImportError)

import torch

from engine_kernels.errors import KernelError
from engine_kernels.triton_ops import device_tiles
from engine_kernels.triton_ops.tiles import GENERAL, HOPPER, Tile, choose, for_architecture, splits
from engine_kernels.triton_ops.tune import Sizes, tune
from tests.support.attention_cases import DEVICE

SMALL, LARGE = Tile(16, 32, 4, 2), Tile(64, 64, 4, 2)


def test_a_choice_grows_with_the_rows_and_every_table_has_one() -> None:
    assert choose({2: ((16, SMALL), (inf, LARGE))}, 16, 2) is SMALL and choose({2: ((16, SMALL), (inf, LARGE))}, 17, 2) is LARGE
    for tiles in (GENERAL, HOPPER, for_architecture("interpreter")):
        for name in ("constants", "rows", "ring", "bidirectional", "project", "copy", "norm"):
            for size in (2, 4):
                assert choose(getattr(tiles, name), 10**9, size).warps in (1, 2, 4, 8)
    assert [splits(rows, 2048, LARGE) for rows in (1, 64, 65, 129, 4096)] == [32, 32, 16, 10, 1]
    assert splits(1, 0, LARGE) == 0 and splits(1, 65, LARGE) == 2


def test_measured_tiles_come_back_and_a_damaged_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADCOUNT_CACHE", str(tmp_path))
    assert device_tiles.read("Some GPU (80 GB)", "sm_90") == HOPPER
    table = {2: ((16, SMALL), (inf, LARGE)), 4: ((inf, SMALL),)}
    path = device_tiles.write("Some GPU (80 GB)", {"rows": table})
    assert path == tmp_path / "tiles-some-gpu-80-gb-.json" and list(tmp_path.iterdir()) == [path]
    assert device_tiles.read("Some GPU (80 GB)", "sm_90") == replace(HOPPER, rows=table)
    good = path.read_text(encoding="utf-8")
    for bad in (
        good[:-9],
        "[]",
        good.replace("rows", "row"),
        good.replace("null", "17"),
        good.replace(": 32", ": 33"),
        good.replace(": 32", ': "32"'),
    ):
        path.write_text(bad, encoding="utf-8")
        with pytest.raises(KernelError, match=path.name):
            device_tiles.read("Some GPU (80 GB)", "sm_90")


def test_tuning_keeps_the_fastest_that_runs(capsys: pytest.CaptureFixture[str]) -> None:
    too_small = Tile(8, 3, 4, 2)  # no block has 3 columns
    sizes = Sizes(heads=1, head_dim=16, persistent=64, window=5, hidden=16)
    candidates = {name: (too_small, SMALL) for name in device_tiles.TUNED}
    tables = tune(torch.device(DEVICE), sizes, candidates, ((16, 2), (inf, 17)))
    assert set(tables) == set(device_tiles.TUNED)
    for name, table in tables.items():
        assert [most for most, _ in table[2]] == [16, inf] and 4 in table
        assert name == "project" or {tile for _, tile in table[2]} == {SMALL}
    assert "passed over" in capsys.readouterr().out
