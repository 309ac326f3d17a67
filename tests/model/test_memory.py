"""No tensor of T × T numbers is made by scoring or continuing a long text: 8,192 tokens, window 193."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.peak_memory import LENGTH, SOURCE

pytest.importorskip("torch")
ROOT = Path(__file__).parents[2]
PAIRS = LENGTH * LENGTH * 4  # bytes of one float32 number for each pair of tokens


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc")
def test_a_long_text_takes_no_more_memory_than_a_window_of_it() -> None:
    assert SOURCE.mem_length + 1 == 193
    done = subprocess.run([sys.executable, "-m", "tests.support.peak_memory"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    grown = json.loads(done.stdout)
    assert grown.pop("a table of all pairs") > 0.8 * PAIRS
    assert set(grown) == {"score", "generate", "two rows in segments"}
    assert all(bytes_more < PAIRS / 16 for bytes_more in grown.values()), grown
