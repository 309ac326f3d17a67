"""The `headcount` command in this process, and what a folder holds before and after it."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import engine
from engine import cli
from engine.errors import EngineError
from tests.support.sources import AihaSource, random_gates

LETTERS = "abcdefghijklmnopqrstuvw"
SOURCE = AihaSource(gates=random_gates(2, 3), vocab=len(LETTERS))
KEPT = [[head for head in range(3) if row[head] >= 0] for row in SOURCE.gates or ()]


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    status: int
    out: str
    err: str


def headcount(*arguments: object, given: str = "") -> Done:
    """Run the command with `given` on standard input."""
    out, err, stdin = io.StringIO(), io.StringIO(), sys.stdin
    sys.stdin = io.StringIO(given)
    status: Any = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main([str(argument) for argument in arguments])
    except SystemExit as end:
        status = end.code or 0
    finally:
        sys.stdin = stdin
    return Done(status, out.getvalue(), err.getvalue())


def write_source(folder: Path) -> Path:
    """A small gated source with a vocabulary of letters; returns the checkpoint."""
    path = SOURCE.write(folder)
    (folder / "config.json").write_text(json.dumps({**SOURCE.config(), "chars": list(LETTERS)}))
    return path


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, hidden ones too, and what the files hold."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@contextlib.contextmanager
def nothing_written(folder: Path) -> Iterator[None]:
    before = contents(folder)
    yield
    assert contents(folder) == before


def refused(path: Path, folder: Path, *said: str, kind: type[EngineError] = EngineError, **given: Any) -> str:
    """The one error of load, of convert and of the command; none of them writes below `folder`, and the command says no more than it."""
    flags = [part for name, value in given.items() for part in _flags(name, value)]
    with nothing_written(folder):
        with pytest.raises(kind) as loaded:
            engine.load(path, **given)
        with pytest.raises(kind) as converted:
            engine.convert(path, folder / "out", **given)
        commands = [headcount("convert", path, folder / "out", *flags), headcount("inspect", path, *flags)]
    text = str(converted.value)
    assert text == str(loaded.value)
    for done in commands:
        assert (done.status, done.out) == (1, "")
        assert done.err == f"{type(converted.value).__name__}: {text}\n"
    assert [phrase for phrase in said if phrase not in text] == []
    return text


def _flags(name: str, value: Any) -> list[str]:
    return [f"--{name}", str(value)] if name in ("heads", "config") else ["--option", f"{name}={json.dumps(value)}"]
