"""Tensors that lie in several files behind an index of Hugging Face's kind, read as the one state dict they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.checkpoint.tensor_file import read_tensors
from engine.errors import CheckpointError, ConversionError, Problem
from engine.formats.pickles import LoadedFile, load_as_named, load_tensors, without_wrappers
from engine.spec.strict_json import parse_json, read_bytes

INDEX = ".index.json"


def load_source(path: Path) -> LoadedFile:
    """The state dict of a file, or of all shards of an index; raises ConversionError whatever the bytes are."""
    if not path.name.endswith(INDEX):
        return load_tensors(path)
    if path.name.endswith(f".safetensors{INDEX}"):
        try:
            return LoadedFile(without_wrappers(read_tensors(path), path.name), {})
        except CheckpointError as error:
            raise ConversionError(error.problems, source=path.name, hint=error.hint) from error
    return _load_pickled_shards(path)


def files_of(path: Path) -> list[Path]:
    """The file itself, and behind an index its shards in the order of their names."""
    if not path.name.endswith(INDEX):
        return [path]
    return [path, *(path.parent / name for name in sorted(set(_weight_map(path).values())))]


def _load_pickled_shards(index: Path) -> LoadedFile:
    placed = _weight_map(index)
    problems: list[Problem] = []
    tensors = {}
    for name in sorted(set(placed.values())):
        held = load_as_named(index.parent / name).tensors
        wanted = {tensor for tensor, file in placed.items() if file == name}
        problems += [Problem(tensor, f"a tensor in {name}", "nothing") for tensor in sorted(wanted - set(held))]
        problems += [Problem(tensor, f"to be listed under {name}", "it in the file only") for tensor in sorted(set(held) - wanted)]
        tensors.update(held)
    if problems:
        raise ConversionError(problems, source=index.name, hint="the shards are not those the index was written for: copy them again")
    return LoadedFile(without_wrappers(tensors, index.name), {})


def _weight_map(index: Path) -> dict[str, str]:
    listed = parse_json(read_bytes(index, ConversionError), index.name, ConversionError)
    placed = listed.get("weight_map") if isinstance(listed, dict) else None
    if not isinstance(placed, dict) or not placed or not all(_is_beside(file) for file in placed.values()):
        raise ConversionError(Problem("weight_map", "names of files beside the index, by tensor", repr(placed)[:60]), source=index.name)
    return placed


def _is_beside(file: Any) -> bool:
    return isinstance(file, str) and bool(file) and Path(file).name == file and "\0" not in file
