"""One part of a run in a process of its own: what it tells, how it died, and whether the GPU still answers after that. Without torch."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from bench.suites.gpu.plan import Part

Tell = Callable[[dict[str, Any]], None]
ANSWERS_WITHIN = 5.0  # seconds for a trivial operation, PyTorch already imported
IMPORTS_WITHIN = 60.0
LAST_WORDS = 8  # lines
STACKS = ("Timeout (", "Fatal Python error")  # how faulthandler begins what it says: the innermost frames follow


def environment(*, interpret: bool) -> dict[str, str]:
    """Of a child: it imports what this process can, and decides between a GPU and the interpreter before triton is imported."""
    chosen = {"TRITON_INTERPRET": str(int(interpret)), "HEADCOUNT_CUDA_EMULATED": str(int(interpret))}
    return {**os.environ, **chosen, "PYTHONPATH": os.pathsep.join([os.getcwd(), *filter(None, sys.path)])}


@contextmanager
def process(command: Sequence[str], env: Mapping[str, str], words: IO[str], *, told: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose whole group is killed when the block ends. words: where it says what it says, but its standard output if `told`."""
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE if told else words, stderr=words, env=env, start_new_session=True
    )
    try:
        yield child
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # a process that waits inside the driver outlives even SIGKILL: leave it behind
            child.wait(ANSWERS_WITHIN)
        if child.stdout is not None:
            child.stdout.close()


def watch(part: Part, log: Path, tell: Tell) -> str | None:
    """Run a part; `tell` gets each thing it reports, when it does. None, or how it died, at what, and its last words."""
    doing = "its start"

    def note(event: dict[str, Any]) -> None:
        nonlocal doing
        if "doing" in event:
            doing = event["doing"]
        else:
            tell(event)

    with log.open("a", encoding="utf-8") as words:
        print(f"== {part.name}", file=words, flush=True)
        begin = log.stat().st_size
        command = [sys.executable, "-m", "bench.suites.gpu.child", part.to_json()]
        with process(command, environment(interpret=part.asked.interpret), words, told=True) as child:
            status = _follow(child, time.monotonic() + part.seconds, note)
    if status == 0:
        return None
    how = f"not done after {part.seconds:.0f} s" if status is None else ended(status)
    return f"{part.name}: {how}, at {doing}; last words: {last_words(log, begin)}"


def probe(device: str, log: Path) -> str | None:
    """Why a fresh process gets no answer from the device within five seconds; None where it does."""
    with log.open("a", encoding="utf-8") as words:
        print("== probe", file=words, flush=True)
        begin = log.stat().st_size
        command = [sys.executable, "-m", "bench.suites.gpu.probe", device, str(ANSWERS_WITHIN)]
        with process(command, environment(interpret=device == "cpu"), words) as child, suppress(subprocess.TimeoutExpired):
            child.wait(IMPORTS_WITHIN + ANSWERS_WITHIN)
        status = child.returncode
    return None if status == 0 else f"a fresh process got no answer; last words: {last_words(log, begin)}"


def ended(status: int) -> str:
    """How a process ended, in words, by its status as subprocess has it."""
    if status >= 0:
        return f"exit status {status}"
    return f"ended by {signal.Signals(-status).name}"


def last_words(log: Path, begin: int) -> str:
    """The innermost frames where faulthandler wrote them, otherwise the last lines; of what a log holds from byte `begin` on."""
    with log.open("rb") as file:
        file.seek(begin)
        lines = [line.strip()[:200] for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    stacks = [index for index, line in enumerate(lines) if line.startswith(STACKS)]
    chosen = lines[stacks[-1] :][:LAST_WORDS] if stacks else lines[-LAST_WORDS:]
    return " | ".join(chosen) or "none"


def _follow(child: subprocess.Popen[bytes], end: float, note: Tell) -> int | None:
    """Pass on each line of JSON until the child ends; its status, None where it was not done in time."""
    assert child.stdout is not None
    pending = b""
    while (left := end - time.monotonic()) > 0:
        if not select.select([child.stdout], [], [], left)[0]:
            break
        chunk = os.read(child.stdout.fileno(), 1 << 16)
        if not chunk:
            break
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            note(json.loads(line))
    with suppress(subprocess.TimeoutExpired):
        child.wait(max(end - time.monotonic(), 0.0))
    return child.returncode
