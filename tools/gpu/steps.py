"""The first command as a table: every step a process of its own with a limit in seconds, in the order they start.

A name in braces is filled in by the runner: {python}; {own}, a folder of the step's own; {minutes}, what its limit leaves it; {folder}, in
which {build} is what is built (build.py). A rehearsal runs the same table, and planted faults behind it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

CUDA, TRITON = "tests/kernels/cuda", "tests/kernels/triton"
PYTEST = ("{python}", "-m", "pytest", "-v", "--tb=short", "-rs", "-p", "no:cacheprovider", "--junitxml={own}/junit.xml")
NICE = ("nice", "-n", "19")  # in the background of a build that everything waits for
BENCH = ("{python}", "-m", "bench", "gpu", "--out", "{own}", "--minutes", "{minutes}")
PLAIN = {"HEADCOUNT_CUDA_PLAIN": "1"}  # one kernel after the other, each named and waited for


@dataclass(frozen=True)
class Step:
    """kind: facts, build, smoke, replays, tests, figures, hunt or planted; smoke and replays are what success means.

    family: the kernels a red step speaks of. needs: families, and the step `build`, that must be green for it to start.
    together: steps of one such name, next to each other, run at the same time; background: it is waited for at the end only, or as soon as
    the step named by `instead` is not green; trapping: with the module whose waits end.
    """

    name: str
    kind: str
    command: tuple[str, ...]
    limit: float
    family: str = ""
    needs: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    together: str = ""
    background: bool = False
    instead: str = ""
    trapping: bool = False
    file: str = "log.txt"


def checks(name: str, kind: str, family: str, limit: float, *selection: str, needs: tuple[str, ...] = ("build",), **more: object) -> Step:
    return Step(name, kind, (*PYTEST, *selection), limit, family, needs, **more)  # type: ignore[arg-type]


def figures(section: str, backend: str, limit: float, *options: str, needs: tuple[str, ...] = (), **more: object) -> Step:
    """One section of `python -m bench gpu`, each figure behind its gate."""
    name = " ".join(("figures:", section, backend, *options)).strip()
    command = (*BENCH, "--section", section, *(("--backend", backend) if backend else ()), *options)
    return Step(name, "figures", command, limit, "", needs, **more)  # type: ignore[arg-type]


def python(name: str, kind: str, limit: float, *arguments: str, **more: object) -> Step:
    return Step(name, kind, ("{python}", "-m", *arguments), limit, **more)  # type: ignore[arg-type]


# Families of kernels, and the smoke tests of each.
SMOKE: dict[str, tuple[str, ...]] = {
    "write_rings": ("test_normalise", "test_write_rings"),
    "project": ("test_project", "test_project_heads"),
    "attend_ring": ("test_attend_ring",),
    "attend_rows": ("test_attend_rows",),
    "attend_bidirectional": ("test_attend_bidirectional",),
    "score_words": ("test_score_words",),
}
LAYERS = tuple(SMOKE)  # what a model's layers, one kernel after the other, and its vocabulary are made of


def smoke(family: str, how: str, **more: object) -> Step:
    selection = [f"{CUDA}/test_smoke.py::{test}" for test in SMOKE[family]]
    return checks(f"{family}, {how}", "smoke", family, 20, *selection, **more)  # type: ignore[arg-type]


def decode(how: str, **more: object) -> Step:
    """Without a graph."""
    return checks(f"decode_step, {how}", "smoke", "decode_step", 20, f"{CUDA}/test_smoke.py::test_decode_step", **more)  # type: ignore[arg-type]


ALONE = ("test_decode.py", "test_hopper.py", "test_replays.py", "test_smoke.py")  # steps of their own
EVERY_TEST = (CUDA, *(f"--ignore={CUDA}/{file}" for file in ALONE), "-n", "4")
HOPPER_FIRST = {"persistent vectors only": "persistent and only", "context only": "context and only", "both": "both"}  # of pytest's -k
WARM = "{python} -m tools.gpu.build native && PYTHONPATH={folder}/native {python} -m tests.kernels.triton.ahead --warm sm_90"


def hopper() -> tuple[Step, ...]:
    """Each case 50 times; smallest first, as a hang takes the rest of its process along."""
    parts = {**HOPPER_FIRST, "the rest": " and ".join(f"not ({part})" for part in HOPPER_FIRST.values())}
    return tuple(
        checks(f"hopper_attend, {name}", "tests", "hopper_attend", 45 if name == "the rest" else 15, f"{CUDA}/test_hopper.py", "-k", part)
        for name, part in parts.items()
    )


FIRST: tuple[Step, ...] = (
    python("facts", "facts", 15, "tools.gpu.facts", file="facts.txt"),
    Step("build without CUDA, Triton's cache", "build", (*NICE, "sh", "-c", WARM), 150, background=True, instead="build"),
    python("build", "build", 90, "tools.gpu.build", "{build}", file="build.log"),
    python("facts, built", "facts", 15, "tools.gpu.facts", "built", file="facts.txt"),
    *(smoke(family, "plain", environment=PLAIN) for family in SMOKE),
    checks("triton", "smoke", "triton", 60, f"{TRITON}/test_smoke.py", "-n", "8", needs=()),
    decode("plain", environment=PLAIN),
    *(smoke(family, "dependent", together="dependent") for family in SMOKE),
    decode("dependent"),
    checks("replays, cuda", "replays", "replays", 25, f"{CUDA}/test_replays.py"),
    checks("replays, triton", "replays", "triton", 45, f"{TRITON}/test_replays.py", "-n", "4", needs=()),
    checks("tests, cuda", "tests", "tests", 75, *EVERY_TEST),
    checks("tests, decode_step alone", "tests", "decode_step", 30, f"{CUDA}/test_decode.py"),
    figures("card", "", 20),
    figures("decode", "cuda", 25, "--batch", "1", "--batch", "16", needs=("build", "replays", "decode_step", *LAYERS)),
    figures("decode", "triton", 25, "--batch", "1", "--batch", "16", needs=("triton",)),
    *hopper(),  # last, as it alone can hang for ever
)

# Before the figures, in a rehearsal: how each must be found to have ended.
PLANTED: dict[str, str] = {"test_hang": "hung", "test_crash": "died", "test_wrong_answer": "red"}


def planted() -> list[Step]:
    return [checks(f"planted: {test}", "planted", "planted", 15, f"tools/gpu/planted.py::{test}") for test in PLANTED]
