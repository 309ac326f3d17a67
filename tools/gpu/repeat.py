"""A plugin of pytest, `-p tools.gpu.repeat`: every test HEADCOUNT_REPEAT times in one process, to see whether an error moves."""

from __future__ import annotations

import os
from typing import Any


def pytest_generate_tests(metafunc: Any) -> None:
    metafunc.fixturenames.append("time_of_many")
    metafunc.parametrize("time_of_many", range(int(os.environ["HEADCOUNT_REPEAT"])), ids=lambda time: f"time {time}")
