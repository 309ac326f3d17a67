"""Thousands of damaged files: each is a clear error or a load of what the file says; never another exception, a crash or a hang."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.mutation_batch import KINDS, PATIENCE

pytest.importorskip("torch")
ROOT = Path(__file__).parents[2]
COUNTS = {  # kind: mutants, the least share that must get past the parsing of the file's form
    "aiha bytes": (250, 0.5),
    "aiha members": (250, 0.5),
    "aiha config": (250, 0.6),
    "small members": (300, 0.5),
    "legacy bytes": (250, 0.2),
    "fair members": (150, 0.5),
    "fair config": (250, 0.6),
    "txl members": (200, 0.5),
    "txl config": (250, 0.6),
    "directory tensors": (250, 0.2),
    "directory header": (150, 0.0),
    "directory config": (300, 0.6),
    "directory config bytes": (150, 0.1),
    "directory tokenizer": (150, 0.0),
    "directory tokenizer fields": (150, 0.2),
    "shard index": (150, 0.3),
}
MOST_MIB = 600  # an interpreter with torch takes 250; no mutant may make that gigabytes


def batch(kind: str, first: int, count: int) -> dict[str, Any]:
    """The outcomes of mutants first .. first + count - 1, in a process of their own."""
    command = [sys.executable, "-m", "tests.support.mutation_batch", kind, str(first), str(count)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20 * PATIENCE)
    assert done.returncode == 0, f"the process died with {done.returncode}: {done.stderr[-3000:]}"
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("kind", COUNTS)
def test_mutants(kind: str, record_property: Any) -> None:
    count, least = COUNTS[kind]
    found = batch(kind, 0, count)
    outcomes: dict[str, int] = found["outcomes"]
    record_property("outcomes", [kind, outcomes])  # tests/conftest.py prints them together
    assert found["failures"] == []
    assert sum(outcomes.values()) == count
    past = sum(number for name, number in outcomes.items() if not name.startswith("form "))
    assert past >= least * count
    assert found["peak_mib"] < MOST_MIB


def test_there_are_thousands_and_three_in_ten_get_past_parsing() -> None:
    assert set(COUNTS) == set(KINDS)
    total = sum(count for count, _ in COUNTS.values())
    assert total >= 3000
    assert sum(count * least for count, least in COUNTS.values()) >= 0.3 * total
