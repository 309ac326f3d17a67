"""The machine's own limits: fused multiply-adds a second in registers, and bytes a second read in order; C compiled on first use."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from engine.errors import Unsupported

SOURCE = Path(__file__).with_name("machine.c")
STEP = 512  # bytes; a share of a buffer is a multiple of it


@cache
def library() -> ctypes.CDLL:
    """machine.c for this processor; raises Unsupported without a C compiler."""
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None:
        raise Unsupported("the limits of the machine need a C compiler: none of cc, gcc, clang is on the path")
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "machine.so"
        command = [compiler, "-O2", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC", str(SOURCE), "-o", str(built)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise Unsupported(f"the limits of the machine: {compiler} failed: {done.stderr.strip()[:500]}")
        loaded = ctypes.CDLL(str(built))
    loaded.multiply_add.argtypes, loaded.multiply_add.restype = [ctypes.c_long, ctypes.c_void_p], ctypes.c_double
    loaded.read_all.argtypes, loaded.read_all.restype = [ctypes.c_void_p, ctypes.c_size_t], ctypes.c_uint64
    return loaded


class Machine:
    """As many threads at work as the engine it is compared with, the caller's among them; use it in a with block."""

    def __init__(self, threads: int) -> None:
        self._library = library()
        self._threads = threads
        self._pool = ThreadPoolExecutor(max(1, threads - 1))
        self.multiply_add(10_000)

    def multiply_add(self, steps: int) -> float:
        """FLOPs done by all threads, `steps` rounds of every register each."""
        others = [self._pool.submit(self._multiply, steps) for _ in range(self._threads - 1)]
        return self._multiply(steps) + sum(other.result() for other in others)

    def read(self, buffer: np.ndarray, times: int) -> None:
        """Every byte of a buffer whose size is a multiple of STEP, each thread a part of it; `times` times."""
        steps = buffer.nbytes // STEP
        ends = [steps * part // self._threads * STEP for part in range(self._threads + 1)]
        first = buffer.ctypes.data
        for _ in range(times):
            others = [self._pool.submit(self._library.read_all, first + start, end - start) for start, end in pairwise(ends[1:])]
            self._library.read_all(first, ends[1])
            wait(others)

    def _multiply(self, steps: int) -> float:
        out = ctypes.c_float()
        done: float = self._library.multiply_add(steps, ctypes.byref(out))
        return done

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()


def buffer_of(size: int) -> np.ndarray:
    """At least `size` bytes, written so that they are there, a multiple of STEP."""
    return np.ones(-(-size // STEP) * STEP, np.uint8)
