"""Safetensors files: what the library writes we read, what we write it reads, and we accept nothing it refuses."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from engine.checkpoint.tensor_file import TYPES, read_tensors, write_tensors
from engine.errors import CheckpointError


def some_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    dtypes = [np.float32, np.float16, np.float64, ml_dtypes.bfloat16, np.int64, np.uint8, np.bool_]
    return {f"t.{i}": rng.integers(0, 2, (int(rng.integers(1, 5)), i + 1)).astype(dtype) for i, dtype in enumerate(dtypes)}


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape, found[name].tobytes()) == (array.dtype, array.shape, array.tobytes()), name


def by_the_library(data: bytes) -> dict[str, np.ndarray]:
    """Its NumPy reader knows no bfloat16, so its raw one."""
    return {
        name: np.frombuffer(value["data"], TYPES[value["dtype"]]).reshape(value["shape"]) for name, value in safetensors.deserialize(data)
    }


def file_of(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_the_library_s_files_are_read(tmp_path: Path) -> None:
    safetensors.numpy.save_file(some_tensors(), tmp_path / "a.safetensors", metadata={"format": "np"})
    assert_equal(read_tensors(tmp_path / "a.safetensors"), some_tensors())


@pytest.mark.parametrize("seed", range(8))
def test_our_files_are_read_by_the_library(tmp_path: Path, seed: int) -> None:
    write_tensors(tmp_path / "a.safetensors", some_tensors(seed))
    assert_equal(by_the_library((tmp_path / "a.safetensors").read_bytes()), some_tensors(seed))
    assert_equal(read_tensors(tmp_path / "a.safetensors"), some_tensors(seed))
    start = 8 + int.from_bytes((tmp_path / "a.safetensors").read_bytes()[:8], "little")
    assert start % 64 == 0


def test_write_shows_each_array_and_never_overwrites(tmp_path: Path) -> None:
    seen: list[str] = []
    write_tensors(tmp_path / "a.safetensors", some_tensors(), seen=lambda name, array: seen.append(name))
    assert sorted(seen) == sorted(some_tensors())
    with pytest.raises(FileExistsError):
        write_tensors(tmp_path / "a.safetensors", some_tensors())


def test_tensors_at_odd_bytes_are_copied_to_even_ones(tmp_path: Path) -> None:
    values = np.array([1.5, -2.0], np.float32)
    header = {
        "byte": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "odd": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
    }
    found = read_tensors(file_of(tmp_path / "a.safetensors", header, b"\1" + values.tobytes()))
    assert found["odd"].flags.aligned and not found["odd"].flags.writeable
    assert np.array_equal(found["odd"], values)


def good() -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "b": {"dtype": "BF16", "shape": [2], "data_offsets": [24, 28]}}


BAD: dict[str, tuple[Any, str]] = {
    "not an object": ([1], "whole header"),
    "not json": (b'{"a":', "JSON"),
    "not utf-8": (b'{"\xff": 1}', "UTF-8"),
    "leading space": (b' {"a": 1}', "whole header"),
    "twice": (b'{"a": 1, "a": 1}', "'a' twice"),
    "nested": (b'{"a":' * 100_000, "nested"),
    "metadata": ({**good(), "__metadata__": {"a": 1}}, "__metadata__: expected an object of texts"),
    "type": ({**good(), "a": {**good()["a"], "dtype": "F4"}}, "a: dtype: expected one of F64, F32"),
    "type list": ({**good(), "a": {**good()["a"], "dtype": ["F32"]}}, "a: dtype"),
    "entry": ({**good(), "a": []}, "a: expected dtype, shape and data_offsets, found []"),
    "more": ({**good(), "a": {**good()["a"], "x": 1}}, "a: expected dtype, shape and data_offsets"),
    "negative": ({**good(), "a": {**good()["a"], "shape": [-2, -3]}}, "a: shape"),
    "empty": ({**good(), "a": {**good()["a"], "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}}, "a: shape"),
    "float": ({**good(), "a": {**good()["a"], "shape": [2.0, 3]}}, "a: shape"),
    "true": ({**good(), "a": {**good()["a"], "shape": [6, True]}}, "a: shape"),
    "rank": ({**good(), "a": {**good()["a"], "shape": [1] * 70 + [6]}}, "a: shape"),
    "overflow": ({**good(), "a": {**good()["a"], "shape": [2**33, 2**33]}}, "a: expected 295147905179352825856 bytes for"),
    "huge": ({**good(), "a": {**good()["a"], "shape": [10**40]}}, "a: shape"),
    "offsets": ({**good(), "a": {**good()["a"], "data_offsets": [24, 0]}}, "a: data_offsets"),
    "one offset": ({**good(), "a": {**good()["a"], "data_offsets": [0]}}, "a: data_offsets"),
    "size": ({**good(), "a": {**good()["a"], "shape": [2, 2]}}, "a: expected 16 bytes for [2, 2] of float32, found 24 bytes"),
    "overlap": ({**good(), "b": {**good()["b"], "data_offsets": [20, 24]}}, "b: expected to start at byte 24"),
    "gap": ({**good(), "b": {**good()["b"], "data_offsets": [26, 30]}}, "b: expected to start at byte 24"),
    "short": ({"a": good()["a"]}, "data: expected 24 bytes, found 28 bytes"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_header_is_one_clear_error(tmp_path: Path, case: str) -> None:
    header, says = BAD[case]
    with pytest.raises(CheckpointError) as caught:
        read_tensors(file_of(tmp_path / "a.safetensors", header, b"\0" * 28))
    assert says in str(caught.value)
    assert str(tmp_path / "a.safetensors") in str(caught.value)


def test_all_problems_of_a_header_together(tmp_path: Path) -> None:
    header = {"a": {**good()["a"], "dtype": "X", "shape": 3}, "b": 1}
    with pytest.raises(CheckpointError) as caught:
        read_tensors(file_of(tmp_path / "a.safetensors", header))
    assert [problem.where for problem in caught.value.problems] == ["a: dtype", "a: shape", "b"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "data", [b"", b"\1", b"\0" * 8, b"\xff" * 8, b"\xff" * 100, (10**8 + 1).to_bytes(8, "little"), b"\2\0\0\0\0\0\0\0{"]
)
def test_files_that_end_in_the_header(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="a safetensors file"):
        read_tensors(tmp_path / "a.safetensors")


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = file_of(tmp_path / "a.safetensors", good(), b"\0" * 28).read_bytes()
    assert set(read_tensors(tmp_path / "a.safetensors")) == {"a", "b"}
    for length in range(len(whole)):
        (tmp_path / "a.safetensors").write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            read_tensors(tmp_path / "a.safetensors")


def test_nothing_there_and_directories(tmp_path: Path) -> None:
    for path in (tmp_path / "none.safetensors", tmp_path, tmp_path / "nul\0.safetensors"):
        with pytest.raises(CheckpointError):
            read_tensors(path)


def test_we_accept_nothing_the_library_refuses(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    write_tensors(tmp_path / "a.safetensors", some_tensors())
    original = (tmp_path / "a.safetensors").read_bytes()
    start = 8 + int.from_bytes(original[:8], "little")
    accepted = 0
    for _ in range(700):
        data = bytearray(original)
        for _ in range(int(rng.integers(1, 3))):
            data[int(rng.integers(start))] = int(rng.choice(list(b'0123456789"[]{},: FIBUt.\x00\xff')))
        (tmp_path / "a.safetensors").write_bytes(data)
        try:
            found = read_tensors(tmp_path / "a.safetensors")
        except CheckpointError:
            continue
        accepted += 1
        assert_equal(found, by_the_library(bytes(data)))
    assert 10 < accepted < 600, accepted


# Shards


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three files and an index, as Hugging Face writes them."""
    tensors = some_tensors()
    placed = {name: f"model-{1 + i % 3:05}-of-00003.safetensors" for i, name in enumerate(tensors)}
    for file in set(placed.values()):
        safetensors.numpy.save_file({name: tensors[name] for name in tensors if placed[name] == file}, tmp_path / file)
    index = {"metadata": {"total_size": 123}, "weight_map": placed}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    return tmp_path / "model.safetensors.index.json"


def test_shards_are_read_as_one(shards: Path) -> None:
    assert_equal(read_tensors(shards), some_tensors())


def test_shards_that_do_not_fit_their_index(shards: Path) -> None:
    index = json.loads(shards.read_text())
    placed = index["weight_map"]
    names = list(placed)
    placed["ghost"] = placed[names[0]]
    del placed[names[1]]
    shards.write_text(json.dumps(index))
    (shards.parent / placed[names[2]]).write_bytes(b"")
    with pytest.raises(CheckpointError) as caught:
        read_tensors(shards)
    wheres = [problem.where for problem in caught.value.problems]  # type: ignore[union-attr]
    assert wheres == ["ghost", names[1], str(shards.parent / placed[names[2]])]


@pytest.mark.parametrize("file", ["../model-00001-of-00003.safetensors", "/etc/passwd", "a\0.safetensors", "sub/a.safetensors", ".", ""])
def test_an_index_reaches_only_files_beside_it(shards: Path, file: str) -> None:
    shards.write_text(json.dumps({"weight_map": {"a": file}}))
    with pytest.raises(CheckpointError, match="beside it"):
        read_tensors(shards)


@pytest.mark.parametrize(
    "index", [[], {}, {"weight_map": {}}, {"weight_map": {"a": 1}}, {"weight_map": []}, {"weight_map": {"a": "none.safetensors"}}]
)
def test_bad_indexes(shards: Path, index: Any) -> None:
    shards.write_text(json.dumps(index))
    with pytest.raises(CheckpointError):
        read_tensors(shards)


def test_a_mapping_outlives_its_file(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", some_tensors())
    found = read_tensors(tmp_path / "a.safetensors")
    os.unlink(tmp_path / "a.safetensors")
    assert_equal(found, some_tensors())
