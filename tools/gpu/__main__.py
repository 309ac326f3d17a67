"""What tools/gpu.sh starts: the first or the second command, into a folder."""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.gpu.build import FOLDER
from tools.gpu.report import FILES, Report
from tools.gpu.run import Runner, Way
from tools.gpu.second import Before, every_branch, second
from tools.gpu.steps import FIRST, PLANTED, Step, planted

SECONDS = {"first": 480.0, "second": 240.0}
SLOWER = 20.0  # how many times longer steps may take in the emulator and the interpreter
REHEARSAL = 6 * 3600.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="sh tools/gpu.sh", description=__doc__)
    parser.add_argument("command", choices=SECONDS)
    parser.add_argument("out", type=Path, help="a folder for at most eight files, which are written anew")
    parser.add_argument("--from", dest="before", type=Path, help="second: the folder of the first; else what it left on this machine")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU, with faults planted")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash leaves no file behind
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what runs is ended on the way out
    here = Path(os.environ.get("HEADCOUNT_GPU_CWD", "."))
    out = here / options.out
    way = Way(SECONDS[options.command])
    if options.rehearse:
        way = Way(REHEARSAL, SLOWER, rehearse=True, modules=("emulated",), trapping="emulated")
    kept = FOLDER / ("first-rehearsal" if options.rehearse else "first")
    known: Mapping[str, bool] = {}
    if options.command == "first":
        table = [*FIRST, *planted()] if options.rehearse else list(FIRST)
    else:
        summary = (here / options.before if options.before else kept) / "summary.json"
        if not summary.exists():
            parser.error(f"second: --from: expected the folder of the first command, found no {summary}")
        before = Before.of(json.loads(summary.read_text(encoding="utf-8")))
        table, known = (every_branch if options.rehearse else second)(before), before.green
    try:
        return run(table, out, way, options.command, known)
    finally:
        if options.command == "first" and (out / "summary.json").exists():  # OUT may be empty again when the second starts
            kept.mkdir(parents=True, exist_ok=True)
            shutil.copy(out / "summary.json", kept)


def run(table: Sequence[Step], out: Path, way: Way, command: str, known: Mapping[str, bool]) -> int:
    """Exit status 0 where no smoke test and no replay is other than green, and planted faults were found for what they are."""
    out.mkdir(parents=True, exist_ok=True)
    for file in FILES:
        (out / file).unlink(missing_ok=True)
    report = Report(out, command, rehearse=way.rehearse, known=known)
    Runner(out, way, report).run(table)
    print(report.text(), end="")
    planted_well = all(result.status == PLANTED[result.step.name.split(": ")[1]] for result in report.of("planted"))
    return 0 if report.success is not False and planted_well else 1


if __name__ == "__main__":
    sys.exit(main())
