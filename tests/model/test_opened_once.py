"""A source is opened once: each configuration parsed once, each file of weights opened once, and only convert hashes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import engine
from tests.support.command import write_source
from tests.support.hugging_face_sources import encoder

torch = pytest.importorskip("torch")
ROOT = Path(__file__).parents[2]
PICKLE = ["engine", "torch"]  # torch maps a file by its name alone: its one opening is the mapping


def hugging_face(folder: Path) -> Path:
    path = encoder().write(folder)
    (path / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\n")
    (path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    return path


def shards(folder: Path, suffix: str, save: Callable[[dict[str, np.ndarray], Path], None]) -> Path:
    path = encoder().write(folder)
    (path / "model.safetensors").unlink()
    tensors, stem = encoder().tensors, "model" if suffix == "safetensors" else "pytorch_model"
    placed = {name: f"{stem}-{index % 2}.{suffix}" for index, name in enumerate(tensors)}
    for file in sorted(set(placed.values())):
        save({name: tensors[name] for name in tensors if placed[name] == file}, path / file)
    (path / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": placed}))
    return path


def safetensors_shards(folder: Path) -> Path:
    return shards(folder, "safetensors", lambda tensors, path: save_file(tensors, path))


def pickled_shards(folder: Path) -> Path:
    return shards(folder, "bin", lambda tensors, path: torch.save({n: torch.from_numpy(a) for n, a in tensors.items()}, path))


def directory(folder: Path) -> Path:
    engine.convert(write_source(folder / "source"), folder / "compact")
    return folder / "compact"


CASES: dict[str, tuple[Callable[[Path], Path], dict[str, list[str]]]] = {
    "Hugging Face": (
        hugging_face,
        {name: ["engine"] for name in ("config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json")},
    ),
    "safetensors shards": (
        safetensors_shards,
        {name: ["engine"] for name in ("config.json", "model.safetensors.index.json", "model-0.safetensors", "model-1.safetensors")},
    ),
    "pickled shards": (
        pickled_shards,
        {
            "config.json": ["engine"],
            "pytorch_model.bin.index.json": ["engine"],
            "pytorch_model-0.bin": PICKLE,
            "pytorch_model-1.bin": PICKLE,
        },
    ),
    "aiha": (write_source, {"config.json": ["engine"], "checkpoint.ckpt": PICKLE}),
    "an engine directory": (directory, {name: ["engine"] for name in ("config.json", "model.safetensors", "tokenizer.json")}),
}


def observed(*paths: Path) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-m", "tests.support.opened", *map(str, paths)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("case", CASES)
def test_a_load_opens_each_file_once_and_hashes_nothing(case: str, tmp_path: Path) -> None:
    write, expected = CASES[case]
    found = observed(write(tmp_path / "model"))
    assert found["opened"] == expected
    assert found["parsed"]["config.json"] == 1 and set(found["parsed"].values()) == {1}
    assert found["hashed"] == {}


@pytest.mark.parametrize("case", ["Hugging Face", "aiha"])
def test_a_conversion_hashes_the_source(case: str, tmp_path: Path) -> None:
    write, expected = CASES[case]
    found = observed(write(tmp_path / "model"), tmp_path / "out")
    weights = next(name for name in expected if name.endswith((".safetensors", ".ckpt")))
    assert found["opened"] == {**expected, weights: sorted(["engine", *expected[weights]])}
    assert found["parsed"]["config.json"] == 1
    assert found["hashed"]["sha256"] == 1 and found["hashed"]["blake2b"] > 1
