"""Conversions stopped half way, one process each: `python -m tests.support.killed SOURCE FOLDER` exits 0 when none left a half directory.

Processes are forked from this one, which has everything imported; tests themselves run threads, from which one does not fork.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import engine
from engine import cli
from engine.checkpoint import directory, new_directory
from tests.support.command import contents

PLACES = ((directory, "digest"), (directory, "_write"), (os, "fsync"), (new_directory, "_install"), (os, "replace"))


def stopped(source: Path, out: Path, place: tuple[Any, str], end: signal.Signals) -> int:
    """The wait status of a conversion that got `end` when it came to `place`."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _convert(source, out, place, writer)
    os.close(writer)
    assert os.read(reader, 1) == b"!", f"{place[1]} was never called"
    os.kill(child, end)
    os.close(reader)
    return os.waitpid(child, 0)[1]


def _convert(source: Path, out: Path, place: tuple[Any, str], writer: int) -> None:
    def wait(*_: Any, **__: Any) -> None:
        os.write(writer, b"!")
        time.sleep(60)

    status = 99
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts its background jobs with it ignored
    try:
        setattr(*place, wait)
        cli.main(["convert", str(source), str(out), "--force"])
    except SystemExit as ended:
        status = int(ended.code or 0)
    finally:
        os._exit(status)


def main(source: Path, folder: Path) -> None:
    stands, new = folder / "stands", folder / "new" / "out"
    engine.convert(source, stands)
    before = contents(stands)
    for place in PLACES:
        for out in (new, stands):
            status = stopped(source, out, place, signal.SIGKILL)
            assert os.WIFSIGNALED(status) and not new.exists() and contents(stands) == before, (place, out)
            engine.convert(source, out, force=True)  # works at once, and clears away what the killed one left
            assert os.listdir(out.parent) == [out.name] if out == new else sorted(os.listdir(folder)) == ["new", "stands"], (place, out)
            directory.read(out, check=True)
            if out == new:
                for file in new.iterdir():
                    file.unlink()
                new.rmdir()
        new.parent.rmdir()
        for out in (new, stands):  # interrupted from the keyboard, it clears up itself
            status = stopped(source, out, place, signal.SIGINT)
            assert os.WIFEXITED(status) and os.WEXITSTATUS(status) not in (0, 99), (place, out, status)
            assert os.listdir(folder) == ["stands"] and contents(stands) == before, (place, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
