"""Every kernel compiled for GPUs that are not here: nothing spills, all of it fits, matrix instructions do the work, nothing has grown."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed: pip install 'headcount[gpu]'", exc_type=ImportError)

ROOT = Path(__file__).parents[3]
SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "gfx942": 64 * 1024}  # bytes a block of threads may have
WITHOUT_MATRICES = {"attend_ring", "merge_parts", "write_rings", "normalise"}  # one row per program, or only moved: bound by memory
# By version of Triton and target: bytes that its ptxas keeps on the stack, written and read once, outside every loop.
ON_THE_STACK = {
    ("3.6.0", "sm_90"): {
        "attend_rows | relative spans | bfloat16 | 16 × 64, 4 w, 2 s": 8,
        "project_heads | norm whole | float32 | 32 × 32, 4 w, 2 s": 8,
    }
}


def ahead(*arguments: str) -> Any:
    """What tests.kernels.triton.ahead prints, in a process of its own: compiling and interpreting exclude each other."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "tests.kernels.triton.ahead", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def recorded(target: str) -> dict[str, list[float]]:
    """registers and KiB of shared memory by kernel, of the table in docs/kernel-log.md."""
    text = (ROOT / "docs" / "kernel-log.md").read_text(encoding="utf-8")
    head = re.search(r"^\| kernel \| variant \| dtype \| tile \| (.*) \|$", text, re.MULTILINE)
    assert head, "docs/kernel-log.md has lost its table of compiled kernels"
    column = head[1].split(" | ").index(target)
    rows = [line.strip("| ").split(" | ") for line in text[head.end() :].split("\n\n")[0].splitlines()[2:]]
    return {" | ".join(row[:4]): [float(number) for number in row[4 + column].split(" / ")] for row in rows if row[4 + column] != "–"}


@pytest.mark.parametrize("target", SHARED_LIMIT)
def test_every_kernel_compiles_into_what_the_target_has(target: str) -> None:
    known, problems = recorded(target), []
    compares = f"Triton {triton.__version__}" in (ROOT / "docs" / "kernel-log.md").read_text(encoding="utf-8")
    rows = ahead("--json", target)
    for row in rows:
        name = " | ".join(row[key] for key in ("kernel", "variant", "dtype", "tile"))
        if row["spills"] > ON_THE_STACK.get((triton.__version__, target), {}).get(name, 0):
            problems.append(f"{name}: {row['spills']} bytes spilled")
        if row["shared"] > SHARED_LIMIT[target]:
            problems.append(f"{name}: {row['shared']} bytes of shared memory")
        matrices = row["dtype"] != "float32" and row["kernel"] not in WITHOUT_MATRICES
        if matrices and not row["matrix"]:
            problems.append(f"{name}: no matrix instructions")
        if compares and name not in known:
            problems.append(f"{name}: not in the table")
        elif compares and (row["registers"] > known[name][0] or row["shared"] / 1024 > known[name][1] + 0.05):
            problems.append(f"{name}: {row['registers']} registers and {row['shared']} bytes, recorded {known[name]}")
    assert not problems, "\n".join([*problems, "if meant: python -m tests.kernels.triton.ahead prints the table of docs/kernel-log.md"])
    assert len(rows) >= 12


def test_head_counts_share_their_compilations() -> None:
    """Heads are a grid size: 1 to 8 of them need one compilation of each kernel per dtype and tile."""
    counts = ahead("--count")
    assert len(counts) >= 6
    assert {name: number for name, number in counts.items() if number != 1} == {}
