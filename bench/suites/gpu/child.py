"""The process of one part, `python -m bench.suites.gpu.child PART`: standard output carries a line of JSON for each thing it tells."""

from __future__ import annotations

import ctypes
import faulthandler
import importlib
import json
import os
import signal
import sys
from typing import Any

from bench.suites.gpu.plan import Part

BEFORE_THE_END = 2.0  # seconds before its limit a part that hangs writes where it stands
PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def main() -> None:
    die_with_the_parent()
    part = Part.from_json(sys.argv[1])
    faulthandler.enable()
    faulthandler.dump_traceback_later(max(part.seconds - BEFORE_THE_END, part.seconds / 2))
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")  # not inherited by what a part starts
    os.dup2(2, 1)  # whatever else is printed goes to the log

    def tell(event: dict[str, Any]) -> None:
        print(json.dumps(event, allow_nan=False), file=told, flush=True)

    from bench.suites.gpu.figures import begin
    from engine.errors import EngineError

    try:
        run = begin(part, tell)
    except EngineError as error:
        sys.exit(str(error))
    if run is not None:
        importlib.import_module(part.module).measure(run)


def die_with_the_parent() -> None:
    """SIGKILL when the parent ends, however it ends: nothing may keep the GPU once it is not watched."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
