"""Engine directories: what is saved is read, and what is damaged is said."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine import checkpoint as store
from engine.checkpoint import digest, is_engine_directory, read, save, validate
from engine.checkpoint.tensor_file import write_tensors
from engine.errors import CheckpointError, EngineError, SpecMismatch
from engine.spec.strict_json import parse_json
from tests.support.store_cases import DTYPES, assert_same, random_checkpoint


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save(random_checkpoint(1, "aiha"), tmp_path / "model")
    return tmp_path / "model"


def edit(directory: Path, **fields: object) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **fields}))


@pytest.mark.parametrize("seed", range(24))
def test_what_is_saved_is_read_bit_for_bit(tmp_path: Path, seed: int) -> None:
    checkpoint = random_checkpoint(seed)
    save(checkpoint, tmp_path / "deep" / "model")
    assert_same(read(tmp_path / "deep" / "model", check=True), checkpoint)
    assert is_engine_directory(tmp_path / "deep" / "model")
    assert os.listdir(tmp_path / "deep") == ["model"]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_every_float_type_survives_and_is_mapped_read_only(tmp_path: Path, dtype: np.dtype) -> None:
    save(random_checkpoint(2, "txl", dtype), tmp_path / "m")
    for array in read(tmp_path / "m").weights.values():
        assert array.dtype == dtype
        assert array.flags.aligned
        with pytest.raises(ValueError, match="read-only"):
            array.reshape(-1)[:] = 0


def test_stored_bytes_are_those_of_the_spec(saved: Path) -> None:
    header = int.from_bytes((saved / "model.safetensors").read_bytes()[:8], "little")
    weights = random_checkpoint(1, "aiha").weights
    assert (saved / "model.safetensors").stat().st_size - 8 - header == sum(array.nbytes for array in weights.values())


def test_arrays_of_any_layout_are_saved_as_they_read(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(3, "fair", np.dtype(np.float32))
    strided = {name: np.asfortranarray(np.repeat(array, 2, axis=0))[::2] for name, array in checkpoint.weights.items()}
    save(replace(checkpoint, weights=strided), tmp_path / "m")
    assert_same(read(tmp_path / "m", check=True), checkpoint)


def test_digest_tells_type_and_shape_apart() -> None:
    zeros = np.zeros((2, 8), np.float32)
    others = [zeros, zeros.reshape(4, 4), zeros.astype(np.float16), zeros + 1, np.zeros((4, 8), np.float16)]
    assert len({digest(array) for array in others}) == len(others)
    assert digest(zeros.T.copy().T) == digest(zeros)


# What contradicts the spec


def test_all_differences_together_in_the_architecture_s_style(saved: Path) -> None:
    weights = dict(read(saved).weights)
    spec = read(saved).spec
    names = list(weights)
    weights[names[0]] = weights[names[0]].astype(np.int32)
    weights[names[1]] = np.zeros((5, 4, 3), np.float32)
    del weights[names[2]]
    weights["extra"] = np.zeros(3, np.float32)
    with pytest.raises(SpecMismatch) as caught:
        validate(spec, weights, source="file", hint="do this")
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{names[0]}: expected float32, float64, float16 or bfloat16, found int32"
    assert lines[1].startswith(f"{names[1]}: expected [") and lines[1].endswith("found [5, 4, 3]")
    assert lines[2].startswith(f"{names[2]}: expected [") and lines[2].endswith("found no such tensor")
    assert lines[3] == "extra: expected no such tensor in this spec, found [3]"
    assert lines[4:] == ["  in file", "  do this"]


def test_weights_that_are_not_pruned_are_named_so(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(5, "txl")
    full = checkpoint.spec.with_kept(tuple(tuple(range(8)) for _ in checkpoint.spec.layers))
    rng = np.random.default_rng(0)
    provenance = {"format": "aiha-lab", "converter_version": 1}
    save(store.Checkpoint(full, {n: rng.standard_normal(s, np.float32) for n, s in full.tensors().items()}, provenance), tmp_path / "m")
    pruned = full.with_kept(tuple((1, 2, 5) for _ in full.layers))
    edit(tmp_path / "m", spec=pruned.to_dict())
    with pytest.raises(SpecMismatch) as caught:
        read(tmp_path / "m")
    a = full.layers[0].attention
    lines = str(caught.value).splitlines()
    expected = f"layers.0.attention.query: expected [{3 * a.head_dim}, {full.hidden}] (3 kept heads × {a.head_dim}), "
    assert expected + f"found [{8 * a.head_dim}, {full.hidden}]" in lines
    assert lines[-2] == f"  in {tmp_path / 'm' / 'model.safetensors'}, converted by aiha-lab 1"
    assert lines[-1].startswith("  the weights are not pruned: run `headcount convert` again")


def test_save_refuses_a_checkpoint_that_contradicts_itself(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(4)
    with pytest.raises(SpecMismatch, match="surplus: expected no such tensor"):
        save(replace(checkpoint, weights={**checkpoint.weights, "surplus": np.zeros(2)}), tmp_path / "m")
    with pytest.raises(SpecMismatch, match=r"spec\.version"):
        save(replace(checkpoint, spec=replace(checkpoint.spec, version=2)), tmp_path / "m")
    for provenance in ({"options": {"path": Path("x")}}, {"value": float("nan")}, {"a": {1, 2}}):
        with pytest.raises(CheckpointError, match=r"provenance|NaN"):
            save(replace(checkpoint, provenance=provenance), tmp_path / "m")
    assert os.listdir(tmp_path) == []


# Damaged directories


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "an empty file"),
        (b"\xff\xfe{}", "text in UTF-8"),
        (b'{"format_version": 1', "expected JSON"),
        (b'{"format_version": 1, "format_version": 1}', "key 'format_version' twice"),
        (b'{"format_version": 1, "spec": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested"),
        (b'{"format_version": 1, "spec": {}, "provenance": ' + b'{"a":' * 80 + b"1" + b"}" * 80 + b"}", "nested"),
        (b'{"format_version": 1, "spec": NaN}', "NaN, which JSON does not have"),
        (b'{"format_version": 1, "spec": "\\ud800"}', "half a character"),
        (b'{"format_version": ' + b"9" * 5000 + b"}", "expected"),
        (b"[]", "expected 1, found nothing"),
        (b"{}", "expected 1, found nothing"),
        (b'{"format_version": 2}', "format_version: expected 1, found 2"),
        (b'{"format_version": true}', "format_version: expected 1, found true"),
        (b'{"format_version": 1.0}', "format_version: expected 1, found 1.0"),
    ],
)
def test_a_damaged_config_is_one_clear_error(saved: Path, text: bytes, says: str) -> None:
    (saved / "config.json").write_bytes(text)
    with pytest.raises(CheckpointError) as caught:
        read(saved)
    assert says in str(caught.value)


def test_unknown_missing_and_ill_typed_top_level_fields_together(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    del config["digests"]
    (saved / "config.json").write_text(json.dumps({**config, "provenance": [], "sepc": 1, "zzz": {}}))
    with pytest.raises(CheckpointError) as caught:
        read(saved)
    found = [str(problem) for problem in caught.value.problems]
    assert found == [
        "sepc: expected no such field, found 1",
        "zzz: expected no such field, found {}",
        "provenance: expected an object, found []",
        "digests: expected an object, found nothing",
    ]


def test_check_reports_every_digest_that_does_not_match(saved: Path) -> None:
    names = list(read(saved).weights)
    data = bytearray((saved / "model.safetensors").read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    for name in names[:2]:
        data[start + header[name]["data_offsets"][0]] ^= 1
    (saved / "model.safetensors").write_bytes(data)
    read(saved)  # not asked to look
    with pytest.raises(CheckpointError) as caught:
        read(saved, check=True)
    assert [problem.where for problem in caught.value.problems] == names[:2]


def test_digests_name_exactly_the_tensors(saved: Path) -> None:
    digests = json.loads((saved / "config.json").read_text())["digests"]
    first, second, *_ = digests
    edit(saved, digests={**{k: v for k, v in digests.items() if k != first}, second: 7, "other": "00"})
    with pytest.raises(CheckpointError) as caught:
        read(saved)
    assert [problem.where for problem in caught.value.problems] == [f"digests.{first}", f"digests.{second}", "digests.other"]


def test_missing_files(saved: Path, tmp_path: Path) -> None:
    for absent in (tmp_path / "none", tmp_path / "nul\0byte"):
        with pytest.raises(CheckpointError):
            read(absent)
        assert not is_engine_directory(absent)
    (saved / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="neither"):
        read(saved)
    (saved / "config.json").unlink()
    (saved / "config.json").mkdir()
    with pytest.raises(CheckpointError, match="a directory"):
        read(saved)


def test_sharded_directories_are_read(saved: Path) -> None:
    weights = dict(read(saved).weights)
    (saved / "model.safetensors").unlink()
    names = list(weights)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in files.items():
        write_tensors(saved / file, {name: weights[name] for name in held})
    index = {"metadata": {"total_size": 1}, "weight_map": {name: file for file, held in files.items() for name in held}}
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_same(read(saved, check=True), random_checkpoint(1, "aiha"))
    save(read(saved), saved, force=True)
    assert sorted(os.listdir(saved)) == ["config.json", "model.safetensors", "tokenizer.json"]
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="found both"):
        read(saved)


def test_a_pipe_does_not_hang(saved: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        (saved / name).unlink()
        os.mkfifo(saved / name)
        with pytest.raises(CheckpointError):
            read(saved)


def test_tokenizer_not_utf8(saved: Path) -> None:
    (saved / "tokenizer.json").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match="UTF-8"):
        read(saved)


def test_is_engine_directory_knows_its_own(saved: Path, tmp_path: Path) -> None:
    (saved / "config.json").write_bytes((saved / "config.json").read_bytes()[:60])
    assert is_engine_directory(saved)  # damaged, but ours: read says how
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"n_layer": 2}')
    assert not is_engine_directory(tmp_path / "other")
    assert not is_engine_directory(tmp_path / "other" / "config.json")


def test_mutated_directories_end_in_an_error_or_a_load(saved: Path) -> None:
    rng = np.random.default_rng(1)
    outcomes = {"read": 0, "refused": 0}
    originals = {name: (saved / name).read_bytes() for name in ("config.json", "model.safetensors")}
    for _ in range(250):
        name = ("config.json", "model.safetensors")[int(rng.integers(2))]
        data = bytearray(originals[name])
        limit = len(data) if name == "config.json" else 8 + int.from_bytes(data[:8], "little")
        for _ in range(int(rng.integers(1, 4))):
            data[int(rng.integers(limit))] = int(rng.integers(256))
        (saved / name).write_bytes(data[: int(rng.integers(len(data)))] if rng.random() < 0.1 else data)
        try:
            read(saved, check=True)
            outcomes["read"] += 1
        except EngineError:
            outcomes["refused"] += 1
        (saved / name).write_bytes(originals[name])
    assert outcomes["refused"] > 100 and outcomes["read"] > 0, outcomes


def test_strict_json_reads_what_json_says() -> None:
    assert parse_json('{"a": [1, 2.5, "ä", null, true]}'.encode(), "x") == {"a": [1, 2.5, "ä", None, True]}
