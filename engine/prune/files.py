"""Files that are whole or not there, and what identifies a run: its model, its data and its settings."""

from __future__ import annotations

import glob
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.checkpoint import Checkpoint, digest
from engine.errors import CheckpointError, InputError, Problem
from engine.spec.strict_json import parse_json, read_bytes


def output_folder(path: Path) -> Path:
    """The path; raises InputError where something stands there that is no folder."""
    try:
        wrong = path.exists() and not path.is_dir()
    except (OSError, ValueError):  # ValueError: a NUL byte in the name
        wrong = True
    if wrong:
        raise InputError(Problem(repr(str(path)), "a folder to make or to go on in", "something else"))
    return path


def write_file(path: Path, content: bytes) -> None:
    """Write `content` beside `path`, then put it in its place; raises CheckpointError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):  # by a process that was killed
            left.unlink(missing_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except (OSError, ValueError) as error:
        raise CheckpointError(Problem(str(path), "a file that can be written", str(error))) from None


def write_json(path: Path, value: Any) -> None:
    write_file(path, json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n")


def write_array(path: Path, array: np.ndarray) -> None:
    content = io.BytesIO()
    np.save(content, array)
    write_file(path, content.getvalue())


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; raises InputError."""
    value = parse_json(read_bytes(path, InputError), str(path), InputError)
    if not isinstance(value, dict):
        raise InputError(Problem(str(path), "a JSON object", type(value).__name__))
    return value


def same_run(path: Path, settings: Mapping[str, Any]) -> bool:
    """Whether the run whose settings `path` holds is this one; False where there is none yet.

    Raises InputError naming every setting that differs, so that a folder never mixes two runs.
    """
    if not path.exists():
        return False
    before = read_object(path).get("settings")
    now = json.loads(json.dumps(settings))
    if before == now:
        return True
    before = before if isinstance(before, dict) else {}
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    problems = [Problem(name, f"{json.dumps(before.get(name))[:80]}, as before", json.dumps(now.get(name))[:80]) for name in names]
    hint = "choose another output directory, or start it afresh with --force"
    raise InputError(problems, source=str(path), hint=hint)


def identity(checkpoint: Checkpoint) -> str:
    """One digest of all weights, by their names."""
    state = hashlib.blake2b(digest_size=16)
    for name, array in checkpoint.weights.items():
        state.update(f"{name} {digest(array)}\n".encode())
    return state.hexdigest()


def data_identity(paths: Sequence[str]) -> list[dict[str, str]]:
    """Name and digest of each file of labelled sentences, or of the files of a folder; raises InputError."""
    found = []
    for path in map(Path, paths):
        try:
            files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
        except OSError as error:
            raise InputError(Problem(str(path), "a readable folder", str(error))) from None
        state = hashlib.sha256(b"".join(read_bytes(file, InputError) for file in files))
        found.append({"path": path.name, "sha256": state.hexdigest()})
    return found
