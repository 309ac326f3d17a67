"""Where a figure comes from: machine, versions, commit, and a digest of the weights."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from engine.checkpoint import digest
from engine.measure.environment import environment

ROOT = Path(__file__).parents[2]  # of a source checkout


def provenance() -> dict[str, Any]:
    """machine, versions and commit of what runs now."""
    found = environment()
    packages = {name: version for name, version in found["packages"].items() if version is not None}
    return {
        "machine": {name: found[name] for name in ("system", "processor", "cores", "instruction_sets")},
        "versions": {"python": found["python"], **packages},
        "commit": commit(),
    }


def commit() -> dict[str, Any]:
    """{"id", "dirty"} of the source tree; results and documents, which a run changes, do not count. None where installed."""
    if not (ROOT / "pyproject.toml").is_file():  # installed: the folder above is not ours
        return {"id": None, "dirty": None}
    identity = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--", ".", ":!bench/results", ":!README.md", ":!docs")
    return {"id": identity, "dirty": None if changes is None else bool(changes)}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


class Digests:
    """One digest of a whole checkpoint; arrays that several checkpoints share are read once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[np.ndarray, str]] = {}  # the array is kept so that its id stays its own

    def of(self, weights: Mapping[str, np.ndarray]) -> str:
        state = blake2b(digest_size=32)
        for name, array in weights.items():
            if id(array) not in self._known:
                self._known[id(array)] = (array, digest(array))
            state.update(f"{name} {self._known[id(array)][1]}\n".encode())
        return state.hexdigest()
