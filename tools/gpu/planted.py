"""The faults of a rehearsal, as tests: a hang that no signal but SIGKILL ends, a crash, and an answer that is wrong in one place."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import numpy as np

from engine_kernels.testing import assert_close


def test_hang() -> None:
    """With a process of its own group, as a worker may be."""
    subprocess.Popen(["sleep", "601.5"], start_new_session=True)
    for number in (signal.SIGABRT, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    while True:
        time.sleep(1)


def test_crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def test_wrong_answer() -> None:
    exact = np.random.default_rng(0).standard_normal((5, 7))
    found = exact.astype(np.float16)
    found[3, 2] += 1
    assert_close(found, exact.astype(np.float16), exact, "float16", "planted")
