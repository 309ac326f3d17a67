"""`startup`: from the start of a process to its first token, a new process for each sample, files in the page cache."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.errors import EngineError
from engine.measure.clock import bar

PROMPT = [1, 0, 1]
# Seconds on the clock that all processes share, after each stage; then the token and what the process took.
CHILD = """
import json, resource, sys, time
path, dtype, threads, prompt = json.loads(sys.argv[1])
stages = {"python": time.monotonic()}
import engine
from engine import loading
stages["imports"] = time.monotonic()
model = engine.load(path, backend="cpu", dtype=dtype, threads=threads)
stages["load"] = time.monotonic()
token = model.generate(prompt, max_new_tokens=1).ids[0]
stages["first token"] = time.monotonic()
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"stages": stages, "token": token, "processor": used.ru_utime + used.ru_stime, "torch": "torch" in sys.modules}))
"""


def measure(path: str, dtype: str, threads: int | None, *, rounds: int, expected: int, quiet: bool = False) -> list[dict[str, float]]:
    """Per process the seconds of each stage, their total, and of processor time; raises EngineError for another token than `expected`."""
    samples = []
    with bar("Starting", rounds + 1, quiet=quiet) as advance:
        for index in range(rounds + 1):
            sample = _start([path, dtype, threads, PROMPT], expected)
            if index > 0:
                samples.append(sample)
            advance()
    return samples


def lines(samples: Sequence[dict[str, float]]) -> list[str]:
    """A line per stage: median and least."""
    found = {name: [sample[name] for sample in samples] for name in samples[0]}
    return [f"{name}: {np.median(seconds):.3f} s (least {min(seconds):.3f})" for name, seconds in found.items()]


def _start(arguments: list[Any], expected: int) -> dict[str, float]:
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", CHILD, json.dumps(arguments)], capture_output=True, text=True)
    if done.returncode != 0:
        raise EngineError(f"the measured process failed:\n{done.stderr}")
    said = json.loads(done.stdout)
    if said["token"] != expected or said["torch"]:
        raise EngineError(f"the measured process answered {said['token']}, expected {expected}; torch imported: {said['torch']}")
    edges = [start, *said["stages"].values()]
    stages = {name: after - before for name, before, after in zip(said["stages"], edges, edges[1:], strict=False)}
    return {**stages, "total": edges[-1] - start, "processor time": said["processor"]}
