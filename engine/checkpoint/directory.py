"""A directory ⇄ Checkpoint: one spec, one mapping of weights, where they came from.

A directory holds config.json {"format_version": 1, "spec", "provenance", "digests"}, model.safetensors (or shards and their
model.safetensors.index.json), and tokenizer.json if the source had one.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from engine.checkpoint.new_directory import new_directory
from engine.checkpoint.side_files import SideFiles
from engine.checkpoint.tensor_file import FLOATS, INDEX, TENSORS, read_tensors, write_tensors
from engine.errors import CheckpointError, ConversionError, Problem, SpecMismatch
from engine.spec import FORMAT_VERSION, ModelSpec, Shapes
from engine.spec.strict_json import parse_json

Weights = Mapping[str, np.ndarray]

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
FIELDS = ("format_version", "spec", "provenance", "digests")
NOT_PRUNED = 'the weights are not pruned: run `headcount convert` again, or name all their heads in "kept" and "kv_of" of config.json'
NOT_TOGETHER = "config.json and the weights do not belong together: run `headcount convert` again"
DAMAGED = "the directory is damaged or was edited: run `headcount convert` again"


@dataclass(frozen=True)
class Checkpoint:
    """The only thing that passes between converters and everything else.

    weights: exactly spec.tensors(), the source's own numbers (bfloat16 through ml_dtypes), possibly memory-mapped.
    provenance: JSON: source format, file, hash, converter version, options, kept heads.  tokenizer: text of a tokenizer.json, or None.
    """

    spec: ModelSpec
    weights: Weights
    provenance: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None


def digest(array: np.ndarray) -> str:
    """BLAKE2b (256 bits, hex) of a tensor's type, shape and bytes; equal digests mean interchangeable tensors."""
    state = hashlib.blake2b(f"{array.dtype.name} {list(array.shape)}\n".encode(), digest_size=32)
    state.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return state.hexdigest()


def is_engine_directory(path: str | os.PathLike[str], files: SideFiles | None = None) -> bool:
    """Whether a directory's config.json names a format_version, even if the rest of it is damaged; never raises.

    files: those of `path`, where a caller reads them again.
    """
    files = files or SideFiles(Path(path))
    try:
        data = files.bytes(files.folder / CONFIG)
    except CheckpointError:
        return False
    try:
        config = files.json(files.folder / CONFIG)
    except CheckpointError:
        return b'"format_version"' in data  # so that reading it tells what is damaged
    return isinstance(config, dict) and "format_version" in config


def read(directory: str | os.PathLike[str], *, check: bool = False, files: SideFiles | None = None) -> Checkpoint:
    """Read an engine directory, its weights memory-mapped and read-only; `check` verifies every digest. files: as is_engine_directory.

    Raises CheckpointError for files that are not what the format says, SpecMismatch for a spec or tensors that contradict each other.
    """
    directory = Path(directory)
    files = files or SideFiles(directory)
    config = _checked_config(files.json(directory / CONFIG), directory / CONFIG)
    spec = ModelSpec.from_dict(config["spec"], source=str(directory / CONFIG))
    tensors = _tensor_path(directory)
    weights = read_tensors(tensors)
    validate(spec, weights, source=_described(tensors, config["provenance"]))
    weights = {name: weights[name] for name in spec.tensors()}
    _check_digests(weights, config["digests"], str(directory / CONFIG), verify=check)
    tokenizer = _read_tokenizer(files)
    return Checkpoint(spec, weights, config["provenance"], tokenizer)


def destination(directory: str | os.PathLike[str]) -> Path:
    """The path of a directory to write; raises CheckpointError for what is no path."""
    if not isinstance(directory, (str, os.PathLike)) or not str(directory) or "\0" in str(directory):
        raise CheckpointError(f"output directory: {repr(directory)[:60]} is no path and cannot be written")
    return Path(directory)


def require_outside(source: str | os.PathLike[str], output: Path) -> None:
    """Raise ConversionError where replacing `output` would take the source away."""
    inner, outer = Path(source).resolve(), output.resolve()
    if outer == inner or outer in inner.parents:
        raise ConversionError(Problem("output directory", f"a place that does not hold the source {source}", str(output)))


def save(checkpoint: Checkpoint, directory: str | os.PathLike[str], *, force: bool = False) -> None:
    """Write an engine directory, whole or not at all; `force` replaces one that exists.

    Raises SpecMismatch for a checkpoint that contradicts itself, CheckpointError where nothing can or may be written.
    """
    target = destination(directory)
    checkpoint.spec.check()
    validate(checkpoint.spec, checkpoint.weights)
    config = _config(checkpoint)
    weights = {name: checkpoint.weights[name] for name in checkpoint.spec.tensors()}
    try:
        tokenizer = None if checkpoint.tokenizer is None else checkpoint.tokenizer.encode()
        _may_write(target, force)
        with new_directory(target) as temporary:
            digests: dict[str, str] = {}
            write_tensors(temporary / TENSORS, weights, seen=lambda name, array: digests.update({name: digest(array)}))
            _write(temporary / CONFIG, _json({**config, "digests": {name: digests[name] for name in weights}}))
            if tokenizer is not None:
                _write(temporary / TOKENIZER, tokenizer)
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL byte, a tokenizer that is not text
        raise CheckpointError(
            f"{directory}: cannot be written: {error}", hint="nothing was written; choose another output directory"
        ) from error


def validate(spec: ModelSpec, weights: Weights, source: str | None = None, hint: str | None = None) -> None:
    """Raise SpecMismatch unless `weights` are exactly spec.tensors(), in floating point; all differences together."""
    shapes = spec.tensors()
    problems = []
    for name, shape in shapes.items():
        found = weights.get(name)
        note = f" ({spec.note(name)})" if spec.note(name) else ""
        if found is None:
            problems.append(Problem(name, f"{list(shape)}{note}", "no such tensor"))
        elif found.shape != shape:
            problems.append(Problem(name, f"{list(shape)}{note}", str(list(found.shape))))
        if found is not None and found.dtype.name not in FLOATS:
            problems.append(Problem(name, "float32, float64, float16 or bfloat16", found.dtype.name))
    problems.extend(Problem(name, "no such tensor in this spec", str(list(weights[name].shape))) for name in weights if name not in shapes)
    if problems:
        raise SpecMismatch(problems, source=source, hint=hint or (NOT_PRUNED if _unpruned(spec, shapes, weights) else NOT_TOGETHER))


def _unpruned(spec: ModelSpec, shapes: Shapes, weights: Weights) -> bool:
    """Whether a tensor that grows with the heads has the size of all the source's heads."""
    for index, layer in enumerate(spec.layers):
        a = layer.attention
        name = f"layers.{index}.attention.output"
        if a.heads == a.source_heads or name not in shapes or name not in weights:
            continue
        if weights[name].size * a.heads == math.prod(shapes[name]) * a.source_heads:
            return True
    return False


def _checked_config(config: Any, path: Path) -> dict[str, Any]:
    if not isinstance(config, dict) or "format_version" not in config:
        raise CheckpointError(
            Problem(f"{path}: format_version", str(FORMAT_VERSION), "nothing"),
            hint="not an engine directory: make one with `headcount convert`",
        )
    version = config["format_version"]
    if version != FORMAT_VERSION or type(version) is not int:
        hint = "it was written by another version of Headcount: convert the source again with this one"
        raise CheckpointError(Problem("format_version", str(FORMAT_VERSION), json.dumps(version)[:60]), source=str(path), hint=hint)
    problems = [Problem(name, "no such field", json.dumps(config[name])[:60]) for name in config if name not in FIELDS]
    problems += [
        Problem(name, "an object", json.dumps(config[name])[:60] if name in config else "nothing")
        for name in FIELDS[1:]
        if not isinstance(config.get(name), dict)
    ]
    if problems:
        raise CheckpointError(problems, source=str(path), hint=DAMAGED)
    return config


def _tensor_path(directory: Path) -> Path:
    single, index = (directory / TENSORS).exists(), (directory / INDEX).exists()
    if single == index:
        raise CheckpointError(Problem(str(directory), f"{TENSORS} or {INDEX}", "both" if single else "neither"), hint=DAMAGED)
    return directory / (TENSORS if single else INDEX)


def _check_digests(weights: Weights, digests: Mapping[str, Any], source: str, *, verify: bool) -> None:
    problems = []
    for name in [*weights, *(name for name in digests if name not in weights)]:
        expected = digests.get(name)
        if name not in weights:
            problems.append(Problem(f"digests.{name}", "no such tensor", json.dumps(expected)[:80]))
        elif not isinstance(expected, str):
            problems.append(Problem(f"digests.{name}", "a digest", json.dumps(expected)[:80]))
        elif verify and expected != (found := digest(weights[name])):
            problems.append(Problem(name, f"digest {expected[:80]}", found))
    if problems:
        raise CheckpointError(problems, source=source, hint=DAMAGED)


def _read_tokenizer(files: SideFiles) -> str | None:
    if not files.has(TOKENIZER):
        return None
    path = files.folder / TOKENIZER
    try:
        return files.bytes(path).decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(Problem(str(path), "text in UTF-8", f"byte 0x{error.object[error.start]:02x} at {error.start}")) from None


def _described(path: Path, provenance: Mapping[str, Any]) -> str:
    made_by = [str(provenance[key])[:60] for key in ("format", "converter_version") if isinstance(provenance.get(key), (str, int))]
    return f"{path}, converted by {' '.join(made_by)}" if made_by else str(path)


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
    """All of config.json but the digests, as it will be read back; raises CheckpointError for a provenance that is not JSON."""
    try:
        config = {"format_version": FORMAT_VERSION, "spec": checkpoint.spec.to_dict(), "provenance": dict(checkpoint.provenance)}
        parse_json(_json(config), CONFIG)
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(Problem("provenance", "JSON values", str(error))) from error
    return config


def _json(config: Mapping[str, Any]) -> bytes:
    text = json.dumps(config, indent=1, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "replace") + b"\n"  # a file name in provenance may not be UTF-8


def _may_write(directory: Path, force: bool) -> None:
    """Raise CheckpointError where something stands that may not be replaced."""
    if not os.path.lexists(directory):
        return
    if not directory.is_dir():
        raise CheckpointError(
            Problem(str(directory), "a directory to make", "something else there"), hint="choose another output directory"
        )
    if not force:
        raise CheckpointError(
            Problem(str(directory), "no directory yet", "one that exists"),
            hint="choose another output directory, or replace it with --force (force=True)",
        )
    names = sorted(os.listdir(directory))
    ours = {CONFIG, TENSORS, INDEX, TOKENIZER, *_shards(directory / INDEX)} if is_engine_directory(directory) else set()
    if other := [name for name in names if name not in ours]:
        found = ", ".join(other[:5]) + (", …" if len(other) > 5 else "")
        raise CheckpointError(
            Problem(str(directory), "an engine directory or an empty one", found),
            hint="nothing but engine files is replaced: move the others away first",
        )


def _shards(index: Path) -> set[str]:
    try:
        return {path.name for path in index.parent.glob("*.safetensors")} if index.exists() else set()
    except OSError:
        return set()


def _write(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
