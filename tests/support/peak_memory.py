"""The most memory this process held, and what scoring and generating a long text adds to it: `python -m tests.support.peak_memory`."""

from __future__ import annotations

import json
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np

import engine
from tests.support.sources import AihaSource

LENGTH = 8192
SOURCE = AihaSource(num_layers=2, num_heads=4, hidden_dim=32, feedforward_dim=17, vocab=50, max_len=200, mem_length=192)


def peak_bytes() -> int:
    """VmHWM of Linux, not ru_maxrss: that one begins with the peak of the process that started this one."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def main() -> dict[str, int]:
    """Bytes that the peak grows by, step after step."""
    with tempfile.TemporaryDirectory() as folder:
        model = engine.load(SOURCE.write(Path(folder)), threads=1)
        ids = np.random.default_rng(0).integers(0, SOURCE.vocab, LENGTH)
        marks = {}

        def mark(name: str) -> None:
            marks[name] = peak_bytes()

        model.score(ids[None, :512])
        model.generate(ids[:512], max_new_tokens=4)
        mark("warm")
        model.score(ids[None])
        mark("score")
        model.generate(ids, max_new_tokens=8)
        mark("generate")
        model.score(np.stack([ids[:4096], ids[4096:]]), segment=64)
        mark("two rows in segments")
        table = np.ones((LENGTH, LENGTH), np.float32)  # what must not happen, to see that it would be seen
        mark("a table of all pairs")
        assert table[-1, -1] == 1
    return {after: marks[after] - marks[before] for before, after in pairwise(marks)}


if __name__ == "__main__":
    json.dump(main(), sys.stdout)
