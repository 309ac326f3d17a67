"""Rows of ARCHITECTURES: each key has one meaning, and a new architecture is one module and one row, as CONTRIBUTING says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import engine
from engine.errors import ConversionError, Unsupported
from engine.export.hugging_face import export_hf
from engine.formats.hugging_face.table import ARCHITECTURES
from tests.support.toy_architecture import TOY

WORDS, PLACES, HIDDEN, HEADS, BLOCKS = 19, 11, 12, 3, 2
WIDTHS = (5, 7)
IDS = [3, 0, 18, 7, 7]


@pytest.fixture(autouse=True)
def row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "toy", TOY)


def toy(folder: Path, kept: tuple[tuple[int, ...], ...] = ((0, 1, 2),) * BLOCKS, **settings: Any) -> tuple[Path, dict[str, np.ndarray]]:
    """A directory with only the heads `kept` in it, and its tensors with all heads."""
    rng = np.random.default_rng(0)
    sizes = {"toy.words": (WORDS, HIDDEN), "toy.places": (PLACES, HIDDEN)}
    for index, width in enumerate(WIDTHS):
        name = f"toy.block.{index}."
        sizes |= {
            f"{name}qkv": (3 * HIDDEN, HIDDEN),
            f"{name}out": (HIDDEN, HIDDEN),
            f"{name}up": (width, HIDDEN),
            f"{name}down": (HIDDEN, width),
        }
    tensors = {name: rng.standard_normal(size).astype(np.float32) for name, size in sizes.items()}
    cut = dict(tensors)
    for index, heads in enumerate(kept):
        for part in ("qkv", "out"):
            name = f"toy.block.{index}.{part}"
            cut[name] = tensors[name].reshape(-1, HEADS, HIDDEN // HEADS, HIDDEN)[:, list(heads)].reshape(-1, HIDDEN)
    folder.mkdir(parents=True)
    save_file(cut, folder / "model.safetensors")
    (folder / "toy.txt").write_text(" ".join(f"w{index}" for index in range(WORDS)))
    (folder / "config.json").write_text(json.dumps({"model_type": "toy", "toy_heads": HEADS, "toy_blocks": BLOCKS, **settings}))
    return folder, tensors


def expected(tensors: dict[str, np.ndarray], kept: tuple[tuple[int, ...], ...]) -> np.ndarray:
    """[T, hidden] of IDS in float64, head by head."""
    w = {name: array.astype(np.float64) for name, array in tensors.items()}

    def norm(x: np.ndarray) -> np.ndarray:
        return (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)

    h, size = w["toy.words"][IDS] + w["toy.places"][: len(IDS)], HIDDEN // HEADS
    for index in range(BLOCKS):
        name = f"toy.block.{index}."
        query, key, value = (h @ part.T for part in np.split(w[f"{name}qkv"], 3))
        total = np.zeros_like(h)
        for head in kept[index]:
            rows = slice(head * size, (head + 1) * size)
            scores = np.exp(query[:, rows] @ key[:, rows].T / np.sqrt(size))
            total += scores / scores.sum(1, keepdims=True) @ value[:, rows] @ w[f"{name}out"][rows]
        h = norm(h + total)
        h = norm(h + np.maximum(h @ w[f"{name}up"].T, 0) @ w[f"{name}down"].T)
    return h


@pytest.mark.parametrize("heads", [((0, 1, 2), (0, 1, 2)), ((2,), (0, 1)), ((), (1,))])
def test_a_new_architecture_is_one_module_and_one_row(heads: tuple[tuple[int, ...], ...], tmp_path: Path) -> None:
    path, tensors = toy(tmp_path / "whole")
    report = engine.convert(path, tmp_path / "out", heads=[list(row) for row in heads])
    assert report.format == "huggingface" and report.kept == heads and report.notes == ()
    cut, _ = toy(tmp_path / "cut", heads, kept_heads=[list(row) for row in heads])
    for place in (tmp_path / "out", cut):
        with engine.load(place, backend="cpu", dtype="float32") as model:
            assert [layer.attention.kept for layer in model.spec.layers] == list(heads)
            assert np.abs(model.encode([IDS])[0] - expected(tensors, heads)).max() < 1e-5
            assert model.tokenizer is not None and model.tokenizer.encode("w3 w18") == [3, 18]


def test_what_the_new_row_refuses(tmp_path: Path) -> None:
    path, _ = toy(tmp_path / "a", toy_twist=2, toy_blocks=3, is_decoder=True, unheard=1)
    with pytest.raises(ConversionError) as caught:
        engine.load(path)
    assert [str(problem) for problem in caught.value.problems] == [
        "config is_decoder: expected false: models are converted without the parts of a decoder beside an encoder, found true",
        "config toy_twist: expected no twist, found 2",
    ]
    assert engine.convert(toy(tmp_path / "b", unheard=1)[0], tmp_path / "out").notes == (
        "unheard of the configuration is not known and not used",
    )
    with pytest.raises(ConversionError, match="found 'toys'") as unknown:
        engine.load(toy(tmp_path / "c", model_type="toys")[0])
    assert "gpt2, toy, found" in str(unknown.value)
    with pytest.raises(Unsupported, match="whose layout it is written in"):
        export_hf(path.parent / "out", tmp_path / "hf")


@pytest.mark.parametrize("kind", [*ARCHITECTURES, "toy"])
def test_a_key_has_one_meaning(kind: str) -> None:
    architecture = ARCHITECTURES[kind]
    lists = (set(architecture.honoured), set(architecture.harmless), set(architecture.changes_the_computation))
    assert all(lists) and sum(map(len, lists)) == len(set.union(*lists))
    assert {"model_type", "architectures", "pruned_heads"} <= lists[0]
