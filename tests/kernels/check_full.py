"""`make check-full`: every combination of the listed sizes × dtype × instruction set of this machine against the float64 oracle.

python -m tests.kernels.check_full [--jobs N] [--seconds S] [--shard I/N]: cases come in a fixed shuffled order, so that a run that is cut
short has seen a fair sample; shard I takes every N-th. Prints progress, then the figures, also into build/check-full.json; exit status 1
where any case failed.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

RESULT = Path(__file__).parents[2] / "build" / "check-full.json"
Found = tuple[str, str, dict[str, float]]  # the case, its dtype, instruction set and way of running → share of what is allowed


def cases() -> list[tuple[str, int]]:
    """("layer" or "vocabulary", number) in the order of running."""
    from tests.support import layer_cases, vocabulary_cases

    numbered = [("layer", i) for i, _ in enumerate(layer_cases.full())] + [("vocabulary", i) for i, _ in enumerate(vocabulary_cases.full())]
    random.Random(0).shuffle(numbered)
    return numbered


def run(which: tuple[str, int]) -> Found:
    from engine_kernels import native
    from tests.support import layer_cases, vocabulary_cases

    kind, number = which
    names, rows = native.instruction_sets(), layer_cases.SIZES["rows"]
    if kind == "layer":
        case = layer_cases.full_case(number)
        return str(case), case.dtype, layer_cases.run_case(case, names, rows).ratios
    other = vocabulary_cases.full_case(number)
    return str(other), other.dtype, vocabulary_cases.run_vocabulary(other, names, rows)


class Figures:
    """Counts, failures and the largest share of what is allowed, by dtype, instruction set and way of running."""

    def __init__(self, total: int) -> None:
        self.total, self.cases, self.comparisons = total, 0, 0
        self.failures: list[str] = []
        self.worst: dict[str, float] = {}

    def add(self, found: Found) -> None:
        case, dtype, ratios = found
        self.cases += 1
        self.comparisons += len(ratios)
        for how, ratio in ratios.items():
            name = f"{dtype}, {how}"
            if not ratio <= 1:
                self.failures.append(f"{ratio:.3g} of what is allowed, {how}: {case}")
            before = self.worst.get(name, 0.0)
            self.worst[name] = before if math.isnan(before) or ratio <= before else ratio

    def line(self) -> str:
        finite = [ratio for ratio in self.worst.values() if not math.isnan(ratio)]
        return (
            f"{self.cases:,} of {self.total:,} cases, {len(self.failures)} failures, worst {max(finite, default=0):.3f} of what is allowed"
        )


def chosen(shard: str) -> list[tuple[str, int]]:
    index, _, count = shard.partition("/")
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise SystemExit(f"--shard: expected I/N with 1 ≤ I ≤ N, found {shard!r}")
    return cases()[int(index) - 1 :: int(count)]


def results(wanted: list[tuple[str, int]], jobs: int) -> Iterator[Found]:
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(run, wanted, chunksize=4)


def main() -> int:
    parser = argparse.ArgumentParser(description="every size × dtype × instruction set against the float64 oracle")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after this long")
    parser.add_argument("--shard", default="1/1", metavar="I/N")
    given = parser.parse_args()
    wanted = chosen(given.shard)
    figures, start, shown = Figures(len(wanted)), time.monotonic(), 0.0
    for found in results(wanted, given.jobs):
        figures.add(found)
        elapsed = time.monotonic() - start
        if sys.stderr.isatty() or elapsed - shown > 30:
            print(f"{elapsed:6.0f} s  {figures.line()}", end="\r" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)
            shown = elapsed
        if elapsed > given.seconds:
            break
    report = {
        "cases": figures.cases,
        "of": figures.total,
        "comparisons": figures.comparisons,
        "seconds": round(time.monotonic() - start),
        "failures": figures.failures,
        "worst": dict(sorted(figures.worst.items())),
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"\n{figures.line()}, {report['comparisons']:,} comparisons in {report['seconds']} s")
    for name, ratio in report["worst"].items():
        print(f"  {name:50} {ratio:.3f}")
    for failure in figures.failures[:20]:
        print(f"FAILED: {failure}")
    return 1 if figures.failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
