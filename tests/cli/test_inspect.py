"""What `headcount inspect` prints, its JSON and its picture, from a directory and from a checkpoint in memory."""

from __future__ import annotations

import builtins
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from engine.checkpoint import Checkpoint, read, save
from engine.cli.inspect_report import Report, heads_bar, ranges, scaled, stored_dtype
from engine.errors import CheckpointError, InputError, Unsupported
from engine.spec import ModelSpec
from engine.spec.cost import model_cost
from tests.support import cost_cases as cases

PROVENANCE = {"format": "aiha-lab", "converter_version": 1, "source": "gated.ckpt", "sha256": "0123456789abcdef", "notes": ["[b]one[/b]"]}


def checkpoint_of(spec: ModelSpec, dtype: Any = np.float32) -> Checkpoint:
    return Checkpoint(spec, {name: np.zeros(shape, dtype) for name, shape in spec.tensors().items()}, PROVENANCE)


def text_of(report: Report, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    report.print(console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("heads", "source_heads", "bar"),
    [(5, 8, "█████···"), (0, 8, "········"), (8, 8, "████████"), (1, 1, "█"), (2, 3, "██·"), (1, 64, "█·······"), (63, 64, "███████·")],
)
def test_heads_bar(heads: int, source_heads: int, bar: str) -> None:
    assert heads_bar(heads, source_heads) == bar


def test_bar_of_many_heads_is_full_or_empty_only_when_the_layer_is() -> None:
    for heads in range(17):
        bar = heads_bar(heads, 16)
        assert len(bar) == 8 and (set(bar) == {"█"}) == (heads == 16) and (set(bar) == {"·"}) == (heads == 0)


def test_ranges_of_kept_heads() -> None:
    assert ranges(()) == "none"
    assert ranges((3,)) == "3"
    assert ranges((0, 1)) == "0 1"
    assert ranges((0, 1, 2, 5, 7, 8, 9, 10)) == "0-2 5 7-10"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (7, "7 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (1234, "1.23 kB"),
        (99_960, "100 kB"),
        (999_600, "1.00 MB"),
        (44_768_786, "44.8 MB"),
    ],
)
def test_scaled_keeps_three_digits(number: int, text: str) -> None:
    assert scaled(number, "B") == text


def test_text_names_the_model_its_layers_and_the_dense_parent(tmp_path: Path) -> None:
    save(checkpoint_of(cases.aiha((3, 0, 8))), tmp_path / "pruned")
    lines = text_of(Report(read(tmp_path / "pruned"))).splitlines()
    assert lines[0].strip() == "gated.ckpt"
    assert "hidden 24 · 3 layers · 11 of 24 heads (54.2% pruned) · vocabulary 65" in lines[1]
    assert "58.3 kB of float32 weights" in lines[2]
    assert lines[3].strip() == "from aiha-lab, converter 1, sha256 0123456789ab…"
    layers = {line.split()[0]: line for line in lines if "/8" in line}
    assert list(layers) == ["0", "1", "2"]
    assert "███·····  3/8" in layers["0"] and "5-7" in layers["0"]
    assert "········  0/8" in layers["1"] and "none" in layers["1"] and "0.0%" in layers["1"]
    assert "████████  8/8" in layers["2"]
    (decode,) = [line for line in lines if line.strip().startswith("decode of a token")]
    report = Report(read(tmp_path / "pruned"))
    assert decode.split()[-1] == f"{report.dense.decode.needed / report.cost.decode.needed:.2f}×"


def test_table_fits_80_columns() -> None:
    text = text_of(Report(checkpoint_of(cases.transformer_xl((8, 5) * 6)), rows=192), width=80)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert sum("/8" in line for line in text.splitlines()) == 12  # one line per layer: nothing wrapped
    assert "…" not in text.replace("0123456789ab…", "")  # nothing cut short either


def test_json_holds_cost_dense_and_speedups() -> None:
    spec = cases.transformer_xl((3, 0, 8))
    report = Report(checkpoint_of(spec), rows=65, batch=2)
    value = json.loads(json.dumps(report.to_json()))
    assert value["kept"] == [[5, 6, 7], [], list(range(8))]
    assert (value["heads"], value["source_heads"]) == (11, 24)
    assert value["stored_bytes"] == model_cost(spec).weight_bytes
    settings = {"dtype": "float32", "quantization": None, "rows": 65, "batch": 2, "tile_rows": 64, "token_counts": None}
    assert value["cost"]["settings"] == settings
    assert value["dense"]["parameters"] == model_cost(cases.transformer_xl((8, 8, 8))).parameters
    ratio = value["dense"]["prefill"]["needed"] / value["cost"]["total"]["prefill"]["needed"]
    assert value["nominal_speedup"]["prefill"] == pytest.approx(ratio)
    assert value["nominal_speedup"]["decode_layers"] > value["nominal_speedup"]["decode"] > 1
    assert value["provenance"] == PROVENANCE


def test_dense_parent_has_every_head_and_no_speedup() -> None:
    report = Report(checkpoint_of(cases.fair((8, 8))))
    assert set(report.speedups().values()) == {1.0}
    assert "pruned)" not in text_of(report)


def test_speedup_of_layers_without_any_head_is_none() -> None:
    report = Report(checkpoint_of(cases.aiha((0, 0))))
    assert report.speedups()["decode_layers"] is None
    assert report.to_json()["nominal_speedup"]["prefill_layers"] is None
    assert "0/8" in text_of(report)


def test_dtype_is_the_stored_one_unless_asked_for() -> None:
    checkpoint = checkpoint_of(cases.aiha((2,)), np.float16)
    assert stored_dtype(checkpoint) == "float16"
    report = Report(checkpoint)
    assert report.cost.weight_bytes == report.stored_bytes
    assert Report(checkpoint, dtype="float32").cost.weight_bytes == 2 * report.stored_bytes
    assert stored_dtype(checkpoint_of(cases.aiha((2,)), np.float64)) == "float32"
    with pytest.raises(InputError):
        Report(checkpoint, dtype="int3")


@pytest.mark.parametrize(
    "spec", [cases.aiha((3, 0, 7)), cases.fair((0,)), cases.transformer_xl((1, 8) * 20)], ids=["aiha", "empty", "deep"]
)
def test_plot_writes_a_png_and_nothing_else(spec: ModelSpec, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "heads.png"
    picture.write_bytes(b"an older picture")
    Report(checkpoint_of(spec)).plot(picture)
    content = picture.read_bytes()
    width, height = int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
    assert content.startswith(b"\x89PNG\r\n") and width >= 1000 and height >= 800
    assert [path.name for path in tmp_path.iterdir()] == ["heads.png"]


def test_plot_to_a_place_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report = Report(checkpoint_of(cases.fair((2,))))
    (tmp_path / "folder").mkdir()
    for target in (tmp_path / "none" / "heads.png", tmp_path / "folder"):
        with pytest.raises(CheckpointError, match="expected a file that can be written"):
            report.plot(target)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_plot_without_matplotlib_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without_matplotlib(name: str, *rest: Any, **options: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return original(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    with pytest.raises(Unsupported, match=r"headcount\[bench\]"):
        Report(checkpoint_of(cases.fair((2,)))).plot(tmp_path / "heads.png")
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_without_provenance_and_with_markup_in_its_name_is_shown_as_it_is() -> None:
    spec = cases.fair((2,))
    bare = Checkpoint(spec, checkpoint_of(spec).weights)
    lines = text_of(Report(bare, name="[red]x[/red]")).splitlines()
    assert lines[0].strip() == "[red]x[/red]"
    assert lines[3].strip() == "from an unknown format"
