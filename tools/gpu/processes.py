"""One process of a step: in a group of its own, with a limit, and ended with everything it started."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

GRACE = 5.0  # seconds from the first signal to SIGKILL, and from that until a process that does not die is left behind
LOOK = 0.25  # seconds between two looks at a process


@dataclass(frozen=True)
class End:
    """How a process ended. code: as subprocess has it; None where even SIGKILL left it alive."""

    code: int | None
    hung: bool
    seconds: float


class Process:
    """A command whose output is appended to a file."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path, cwd: Path) -> None:
        self._began = time.monotonic()
        with log.open("ab") as words:
            self._process = subprocess.Popen(
                command,
                cwd=cwd,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, limit: float, meanwhile: Callable[[], None]) -> End:
        """Until it ends, or `limit` seconds after its start; `meanwhile` is called now and then. Nothing it started is left."""
        others: list[int] = []
        try:
            code = self._until(self._began + limit, meanwhile)
            hung = code is None
            if hung:
                others = _descendants(self._process.pid)
                # pytest answers SIGABRT with the stack of every thread, which says where it hangs.
                _signal(self._process.pid, others, signal.SIGABRT)
                code = self._until(time.monotonic() + GRACE, meanwhile)
        finally:
            _signal(self._process.pid, others, signal.SIGKILL)
        if code is None:
            code = self._until(time.monotonic() + GRACE, meanwhile)
        return End(code, hung, time.monotonic() - self._began)

    def is_over(self, limit: float) -> bool:
        """Whether it has ended, or should have."""
        return self._process.poll() is not None or time.monotonic() - self._began >= limit

    def kill(self) -> None:
        _signal(self._process.pid, _descendants(self._process.pid), signal.SIGKILL)

    def _until(self, deadline: float, meanwhile: Callable[[], None]) -> int | None:
        while True:
            try:
                return self._process.wait(max(0.0, min(LOOK, deadline - time.monotonic())))
            except subprocess.TimeoutExpired:
                meanwhile()
                if time.monotonic() >= deadline:
                    return None


def _signal(group: int, others: Sequence[int], number: signal.Signals) -> None:
    """To a group, and to those that left it; whoever has ended is passed over."""
    with suppress(ProcessLookupError):
        os.killpg(group, number)
    for pid in others:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _descendants(pid: int) -> list[int]:
    """Processes started by `pid` and by those, in whatever group they are."""
    parents: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(status.parent.name)] = int(status.read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, ValueError, IndexError):
            continue  # it ended meanwhile
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]
