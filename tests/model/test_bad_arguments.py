"""heads= that name what is not there, and outputs that exist, cannot be written or are no path: refused, and nothing written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engine
from engine.errors import CheckpointError, ConversionError, InputError
from tests.support.command import headcount, nothing_written, refused

pytest.importorskip("torch")


# --- heads


@pytest.mark.parametrize(
    ("heads", "said"),
    [
        ({"0": [3]}, ["layer 0: expected heads from 0 to 2, found 3"]),
        ({"0": [-1], "1": ["a"]}, ["layer 0", "found -1", "layer 1", "found 'a'"]),
        ({"2": [0], "x": [0]}, ["layer '2': expected a layer from 0 to 1", "layer 'x'"]),
        ({"0": [1, 1]}, ["layer 0: expected each head once, found 1 2 times"]),
        ({"0": 1}, ["layer 0: expected a list of head numbers"]),
        ([[0], [0, 0]], ["layer 1: expected each head once"]),
        ([[0]], ["a list of kept heads for each of 2 layers, found 1 entries"]),
        ([[0], [1.5]], ["layer 1", "found 1.5"]),
        ([[0], [True]], ["layer 1", "found True"]),
        (3, ["heads: expected"]),
        (np.ones((3, 2)), ["heads: expected an array of 2 layers × 3 heads, found [3, 2]"]),
        (np.ones(6), ["found [6]"]),
        (np.array([[1, np.nan, 0], [0, 0, np.inf]]), ["layer 0, head 1: expected a finite number", "layer 1, head 2"]),
    ],
    ids=str,
)
def test_heads_out_of_range_twice_or_of_the_wrong_shape(heads: Any, said: list[str], source: Path, compact: Path, tmp_path: Path) -> None:
    file = tmp_path / ("heads.npy" if isinstance(heads, np.ndarray) else "heads.json")
    if isinstance(heads, np.ndarray):
        np.save(file, heads)
    else:
        file.write_text(json.dumps(heads))
    for path in (source, compact):
        refused(path, tmp_path, *said, heads=file, kind=InputError)
        with pytest.raises(InputError) as caught:
            engine.load(path, heads=heads)
        assert [phrase for phrase in said if phrase not in str(caught.value)] == []


def test_heads_files_that_are_none(source: Path, tmp_path: Path) -> None:
    for name, content in (("a.json", b"{"), ("b.npy", b"\x93NUMPY"), ("c.pt", b"PK"), ("d.txt", b"0"), ("e.json", b'{"0": [1], "0": [2]}')):
        (tmp_path / name).write_bytes(content)
        refused(source, tmp_path, name, heads=tmp_path / name)
    refused(source, tmp_path, "nowhere.json", heads=tmp_path / "nowhere.json")


# --- output


def test_output_that_stands_there_already(source: Path, compact: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    with nothing_written(tmp_path):
        for target in (compact, tmp_path / "file", tmp_path / "folder"):
            with pytest.raises(ConversionError, match="found one that exists"):
                engine.convert(source, target)
            with pytest.raises(CheckpointError), engine.load(source) as model:
                model.save(target)
            done = headcount("convert", source, target)
            assert done.status == 1 and "--force" in done.err
        for target in (tmp_path / "file", tmp_path / "folder", source.parent):  # none of them an engine directory
            done = headcount("convert", source, target, "--force")
            assert done.status == 1 and done.err.count("\n") <= 3 and str(target) in done.err
    assert headcount("convert", source, compact, "--force").status == 0


@pytest.mark.parametrize("target", ["file/model", "/proc/model", "/dev/null/model", "n" * 300, "nul\0byte", ""], ids=repr)
def test_output_that_cannot_be_written(target: str, source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = str(tmp_path / target) if target else ""
    with nothing_written(tmp_path):
        with pytest.raises(CheckpointError, match="cannot be written"):
            engine.convert(source, path)
        with pytest.raises(CheckpointError, match="cannot be written"), engine.load(source) as model:
            model.save(path)
        done = headcount("convert", source, path)
        assert done.status == 1 and done.err.startswith("CheckpointError") and "cannot be written" in done.err


@pytest.mark.parametrize("target", [None, 3, b"out", []], ids=repr)
def test_output_that_is_no_path(target: Any, source: Path, tmp_path: Path) -> None:
    with nothing_written(tmp_path), pytest.raises(CheckpointError, match="is no path"):
        engine.convert(source, target)
