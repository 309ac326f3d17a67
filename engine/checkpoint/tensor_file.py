"""Safetensors files ⇄ arrays: read strictly and memory-mapped, one file or shards; written in one pass.

Format: 8 bytes little-endian length, that many bytes of JSON {name: {dtype, shape, data_offsets}}, the tensors' bytes without gaps
(github.com/huggingface/safetensors, README).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from engine.errors import CheckpointError, Problem
from engine.spec.strict_json import parse_json, read_json

TENSORS = "model.safetensors"
INDEX = "model.safetensors.index.json"
FLOATS = ("float32", "float64", "float16", "bfloat16")  # what a checkpoint may hold
MAX_HEADER = 100_000_000  # the safetensors library's own limit
MAX_RANK = 8
ALIGN = 64
DAMAGED = "the file is damaged or was not written as safetensors: copy or convert it again"

TYPES: dict[str, np.dtype[Any]] = {  # what the format calls a type of number → NumPy's
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    **{f"{sign}{8 * size}": np.dtype(f"<{sign.lower()}{size}") for sign in "IU" for size in (1, 2, 4, 8)},
    "BOOL": np.dtype(bool),
}
TAGS = {dtype: tag for tag, dtype in TYPES.items()}


@dataclass(frozen=True)
class _Entry:
    """Where a tensor lies: bytes [start, stop) after the header."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    stop: int


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a .safetensors file, or of all shards of a .safetensors.index.json, read-only and memory-mapped.

    Raises CheckpointError with every problem of the file's header; nothing is mapped before the file has the size its header says.
    """
    return _read_shards(path) if path.name.endswith(".json") else _read_file(path)


def write_tensors(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    seen: Callable[[str, np.ndarray], None] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write arrays of FLOATS, widest first so that each lies aligned; `seen` is called with each contiguous array as it is written."""
    order = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    offset = 0
    for name in order:
        array = tensors[name]
        header[name] = {"dtype": TAGS[array.dtype], "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGN)
    with open(path, "xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            array = np.ascontiguousarray(tensors[name])
            if seen is not None:
                seen(name, array)
            file.write(array.reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())


def _read_shards(index: Path) -> dict[str, np.ndarray]:
    listed = read_json(index)
    placed = listed.get("weight_map") if isinstance(listed, dict) else None
    if not isinstance(placed, dict) or not placed or not all(isinstance(file, str) for file in placed.values()):
        raise CheckpointError(Problem(f"{index}: weight_map", "an object of file names by tensor", _shown(placed)))
    files = sorted(set(placed.values()))
    if outside := [file for file in files if not file.endswith(".safetensors") or Path(file).name != file or "\0" in file]:
        raise CheckpointError([Problem(f"{index}: weight_map", "names of .safetensors files beside it", repr(file)) for file in outside])
    problems: list[Problem | str] = []
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        try:
            held = _read_file(index.parent / file)
        except CheckpointError as error:
            problems.extend(error.problems)
            continue
        wanted = {name for name, place in placed.items() if place == file}
        problems.extend(Problem(name, f"a tensor in {file}", "nothing") for name in sorted(wanted - set(held)))
        problems.extend(Problem(name, f"to be listed under {file}", "it in the file only") for name in sorted(set(held) - wanted))
        tensors.update(held)
    if problems:
        raise CheckpointError(problems, source=str(index), hint="the shards are not those the index was written for: copy them again")
    return tensors


def _read_file(path: Path) -> dict[str, np.ndarray]:
    """Opened once: the header is read and the file mapped through one handle."""
    if not path.is_file():  # a pipe or a device could block for ever
        raise CheckpointError(Problem(str(path), "a file", "a directory" if path.is_dir() else "nothing"))
    try:
        file = open(path, "rb")  # noqa: SIM115 - the with statement below holds it
    except (OSError, ValueError) as error:
        raise CheckpointError(Problem(str(path), "a readable file", str(error))) from error
    with file:
        start, entries = _read_header(file, path)
        if not entries:
            return {}
        try:
            data = np.asarray(np.memmap(file, dtype=np.uint8, mode="r"))
        except (OSError, ValueError) as error:
            raise CheckpointError(Problem(str(path), "a file that can be mapped", str(error))) from error
    if data.size != start + max(entry.stop for entry in entries.values()):
        raise CheckpointError(Problem(str(path), "a file that is not being written to", "one that changed while it was read"))
    return {name: _view(data[start + entry.start : start + entry.stop], entry) for name, entry in entries.items()}


def _view(data: np.ndarray, entry: _Entry) -> np.ndarray:
    array = data.view(entry.dtype).reshape(entry.shape)
    if array.flags.aligned:
        return array
    array = array.copy()  # a foreign file may place tensors at odd bytes; kernels read whole numbers
    array.flags.writeable = False
    return array


def _read_header(file: BinaryIO, path: Path) -> tuple[int, dict[str, _Entry]]:
    """Where the data starts, and what lies there; raises CheckpointError unless the tensors fill the file exactly."""
    try:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if length <= min(MAX_HEADER, size - 8) else b""
    except (OSError, ValueError) as error:
        raise CheckpointError(Problem(str(path), "a readable file", str(error))) from error
    if not text.startswith(b"{"):
        raise CheckpointError(
            Problem(str(path), "a safetensors file", "an empty file" if size == 0 else "no whole header at its start"), hint=DAMAGED
        )
    problems: list[Problem] = []
    entries = _entries(parse_json(text, f"{path}: header"), problems)
    if not problems:
        problems.extend(_layout_problems(entries, size - 8 - length))
    if problems:
        raise CheckpointError(problems, source=str(path), hint=DAMAGED)
    return 8 + length, entries


def _entries(header: Any, problems: list[Problem]) -> dict[str, _Entry]:
    if not isinstance(header, dict):
        problems.append(Problem("header", "an object", _shown(header)))
        return {}
    entries = {}
    for name, value in header.items():
        if name == "__metadata__":
            if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
                problems.append(Problem(name, "an object of texts", _shown(value)))
        elif (entry := _entry(name, value, problems)) is not None:
            entries[name] = entry
    return entries


def _entry(name: str, value: Any, problems: list[Problem]) -> _Entry | None:
    before = len(problems)
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        problems.append(Problem(name, "dtype, shape and data_offsets", _shown(value)))
        return None
    tag, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(tag, str) or tag not in TYPES:
        problems.append(Problem(f"{name}: dtype", "one of " + ", ".join(TYPES), _shown(tag)))
    if not _counts(shape, least=0) or len(shape) > MAX_RANK:  # a layer without heads may be stored as matrices of no rows
        problems.append(Problem(f"{name}: shape", f"at most {MAX_RANK} sizes", _shown(shape)))
    if not _counts(offsets, least=0) or len(offsets) != 2 or offsets[0] > offsets[1]:
        problems.append(Problem(f"{name}: data_offsets", "a first and a last byte", _shown(offsets)))
    if len(problems) > before:
        return None
    entry = _Entry(TYPES[tag], tuple(shape), offsets[0], offsets[1])
    needed = math.prod(entry.shape) * entry.dtype.itemsize
    if needed != entry.stop - entry.start:
        problems.append(Problem(name, f"{needed} bytes for {list(entry.shape)} of {entry.dtype.name}", f"{entry.stop - entry.start} bytes"))
    return entry


def _layout_problems(entries: Mapping[str, _Entry], size: int) -> list[Problem]:
    problems, offset = [], 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
        if entry.start != offset:
            problems.append(Problem(name, f"to start at byte {offset} of the data, where the one before it ends", f"byte {entry.start}"))
        offset = entry.stop
    if offset != size:
        problems.append(Problem("data", f"{offset} bytes", f"{size} bytes"))
    return problems


def _counts(value: Any, least: int) -> bool:
    return isinstance(value, list) and all(isinstance(n, int) and not isinstance(n, bool) and least <= n < 2**62 for n in value)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
