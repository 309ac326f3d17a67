"""The second command: its steps follow from what the first one found, each red family a part of its own, figures of what is green."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tools.gpu.steps import CUDA, LAYERS, NICE, PLAIN, PYTEST, TRITON, Step, checks, figures, python

TWENTY_TIMES = {"HEADCOUNT_REPEAT": "20"}
NEVER = {"HEADCOUNT_HOPPER_ATTEND": "never"}
EACH_LAYER = {"HEADCOUNT_DECODE_STEP": "never"}  # decode by kernels of each layer
WATCHED = {  # as bench/suites/gpu/sanitize.py has them
    "HEADCOUNT_GPU_GRAPHS": "0",
    "HEADCOUNT_CUDA_PATIENCE": "120",
    "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
    **PLAIN,
}
LARGE_BATCHES = ("--batch", "4", "--batch", "64", "--batch", "256")
LARGE_ROWS = ("--rows", "3072", "--rows", "12288")
MEMCHECK = ("compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9", "--target-processes", "all")
SMOKE, HOPPER = f"{CUDA}/test_smoke.py", f"{CUDA}/test_hopper.py"
TRAPPING = "build whose waits end"
FAMILIES = (*LAYERS, "decode_step", "replays", "triton", "hopper_attend")


@dataclass(frozen=True)
class Before:
    """What a summary of the first command says: whether each family, and the build, is green, and the first test of it that failed."""

    green: Mapping[str, bool]
    failing: Mapping[str, str]

    @staticmethod
    def of(summary: Mapping[str, Any]) -> Before:
        green: dict[str, bool] = {}
        failing: dict[str, str] = {}
        for step in summary["steps"]:
            family = step["family"] or step["name"]
            green[family] = green.get(family, True) and step["status"] == "green"
            if step["failures"]:
                failing.setdefault(family, step["failures"][0][0])
        return Before(green, failing)

    @property
    def red(self) -> list[str]:
        return [family for family in FAMILIES if not self.green.get(family, False)]


def second(before: Before) -> list[Step]:
    """By worth: what says why something is red, then figures of the rest, then what takes long."""
    if not before.green.get("build", False):
        return [python("build without CUDA", "build", 60, "tools.gpu.build", "native", file="build.log"), *triton_alone()]
    red, steps = before.red, [python("build", "build", 90, "tools.gpu.build", "{build}", file="build.log")]
    if "hopper_attend" in red:
        steps.insert(0, Step(TRAPPING, "build", (*NICE, "{python}", "-m", "tools.gpu.build", "{trapping}"), 150, background=True))
    for family in red:
        if family in LAYERS:
            steps += hunt(family, before.failing.get(family, f"{SMOKE}::test_{family}"))
    if "decode_step" in red:
        steps += smaller_and_smaller()
    steps += all_figures(hopper="hopper_attend" not in red, decode="decode_step" not in red)
    if "hopper_attend" in red:
        test = before.failing.get("hopper_attend", HOPPER)
        steps.append(checks("hopper_attend, waits end", "hunt", "", 30, test, "-x", environment=PLAIN, trapping=True))
    return steps if red else [*steps, *long_ones()]


def hunt(family: str, test: str) -> list[Step]:
    """Memory first; then one case many times: an error that stays the same is an index, one that moves is an order."""
    many = ("-p", "tools.gpu.repeat", test)
    return [
        Step(f"{family}, memcheck", "hunt", (*MEMCHECK, *PYTEST, test), 40, needs=("build",), environment=WATCHED),
        checks(f"{family}, 20 times, plain", "hunt", "", 20, *many, environment={**TWENTY_TIMES, **PLAIN}),
        checks(f"{family}, 20 times, dependent", "hunt", "", 20, *many, environment=TWENTY_TIMES),
    ]


def smaller_and_smaller() -> list[Step]:
    """decode_step in smaller clusters, then in one layer, then with one head; the error of a step that was given up says where."""
    cases = {
        "clusters of 4": ("test_decode_step_in_clusters", "4"),
        "clusters of 1": ("test_decode_step_in_clusters", "1"),
        "one layer": ("test_decode_step", "one and layer"),
        "one head": ("test_decode_step", "one and head"),
    }
    return [checks(f"decode_step, {name}", "hunt", "", 10, f"{SMOKE}::{test}", "-x", "-k", part) for name, (test, part) in cases.items()]


def all_figures(*, hopper: bool, decode: bool) -> list[Step]:
    """Where hopper_attend or decode_step is red, of the kernels it stands for."""
    prefill = {} if hopper else NEVER
    alone, batches = ({}, LARGE_BATCHES) if decode else (EACH_LAYER, ("--batch", "1", "--batch", "16", *LARGE_BATCHES))
    return [
        figures("card", "", 20),
        figures("decode", "cuda", 30, *batches, needs=("build", *LAYERS), environment=alone),
        figures("decode", "triton", 30, *LARGE_BATCHES, needs=("triton",)),
        figures("attention", "cuda", 30, *LARGE_ROWS, needs=("build", "attend_rows"), environment=prefill),
        figures("attention", "triton", 30, *LARGE_ROWS, needs=("triton",)),
        figures("attention", "torch", 30, *LARGE_ROWS),
        figures("score", "cuda", 20, needs=("build", *LAYERS), environment=prefill),
        figures("score", "triton", 20, needs=("triton",)),
    ]


def long_ones() -> list[Step]:
    """Where everything is green: a barrier of a whole grid, counters of one launch, Triton's other tests, then memory."""
    check = ("{python}", "-m", "bench", "sanitize", "--tool", "memcheck", "--minutes", "{minutes}", "--out", "{own}")
    files = [f"--ignore={TRITON}/test_{name}.py" for name in ("ahead", "tiles", "smoke", "replays")]  # compile for long, or have run
    return [
        figures("barrier", "", 20),
        figures("counters", "", 60, needs=("build",)),
        checks("tests, triton", "tests", "triton", 120, TRITON, *files, "-n", "8"),
        Step("memcheck", "hunt", check, 60, needs=("build",)),
    ]


def triton_alone() -> list[Step]:
    """Where there is no module of CUDA kernels."""
    timed = (("decode", ("--batch", "1", "--batch", "16", *LARGE_BATCHES)), ("attention", LARGE_ROWS), ("score", ()))
    return [
        checks("triton", "smoke", "triton", 60, f"{TRITON}/test_smoke.py", "-n", "8", needs=()),
        checks("replays, triton", "replays", "triton", 45, f"{TRITON}/test_replays.py", "-n", "4", needs=()),
        figures("card", "", 20),
        *(figures(section, "triton", 40, *options, needs=("triton",)) for section, options in timed),
        figures("attention", "torch", 30, *LARGE_ROWS),
    ]


def every_branch(before: Before) -> list[Step]:
    """For a rehearsal: the steps of what was found, and of each family and the build found red, each step once."""
    found = [before, *(Before({**before.green, red: False}, before.failing) for red in (*FAMILIES, "build"))]
    return list({step.name: step for each in found for step in second(each)}.values())
