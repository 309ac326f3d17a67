"""tools/gpu.sh: a hang, a crash and a wrong answer are contained and reported, and what it writes can be read at every moment."""

from __future__ import annotations

import ast
import errno
import json
import os
import subprocess
import sys
import threading
import xml.etree.ElementTree as xml
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tools.gpu import __main__ as script
from tools.gpu import build, report
from tools.gpu import run as runner
from tools.gpu.processes import End
from tools.gpu.report import FILES, outcome
from tools.gpu.run import Way
from tools.gpu.second import FAMILIES, Before, every_branch, second
from tools.gpu.steps import FIRST, PLANTED, Step, checks, planted

ROOT = Path(__file__).parents[2]
HERE = Way(seconds=120, times=0.2, rehearse=True, modules=("emulated",))
GREEN = Before({family: True for family in (*FAMILIES, "build")}, {})


def says(name: str, kind: str, code: str, limit: float = 30, **more: Any) -> Step:
    return Step(name, kind, ("{python}", "-c", code), limit, **more)


class Reader(threading.Thread):
    """Reads a folder's summary again and again until it is told to stop; what it found wrong."""

    def __init__(self, out: Path) -> None:
        super().__init__()
        self._out, self._over = out, threading.Event()
        self.summaries: list[dict[str, Any]] = []
        self.wrong: list[str] = []

    def run(self) -> None:
        while not self._over.wait(0.01):
            files = sorted(path.name for path in self._out.glob("*"))
            if set(files) - set(FILES):
                self.wrong.append(f"files {files}")
            if "summary.json" in files:
                try:
                    self.summaries.append(json.loads((self._out / "summary.json").read_text(encoding="utf-8")))
                    xml.parse(self._out / "junit.xml")
                except (OSError, ValueError, xml.ParseError) as error:
                    self.wrong.append(repr(error))

    def __enter__(self) -> Reader:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()


def alive(word: str) -> list[str]:
    """Processes whose command line holds a word."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            said = line.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        found += [said] * (word in said)
    return found


OWN = "import pathlib, sys; o = pathlib.Path(sys.argv[1]); (o / 'gpu.log').write_text('its log'); "
OWN += "(o / 'counters-decode_step.txt').write_text('first ' + 'y' * 400_000 + ' last'); print('its words')"


def test_faults_are_contained_and_reported_and_later_steps_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.gpu.processes.GRACE", 1.0)
    out = tmp_path / "out"
    figure = {"figures": [{"section": "card", "case": "copy"}]}
    write = f"import pathlib, sys, time; o = pathlib.Path(sys.argv[1]); (o / 'gpu.json').write_text({json.dumps(figure)!r}); "
    write += "(o / 'gpu.md').write_text('| copy |'); time.sleep(1)"
    table = [
        says("facts", "facts", "print('one fact')", file="facts.txt"),
        says("aside", "build", "import time; time.sleep(1); print('done aside')", background=True),
        says("build", "build", "print('compiled')", file="build.log"),
        *(replace(step, limit=9) if step.name.endswith("hang") else step for step in planted()),
        says("loud", "hunt", "print('x' * 2**20, 'the end')"),
        Step("files of its own", "hunt", ("{python}", "-c", OWN, "{own}"), 30),
        says("no figure", "figures", "print('none')"),
        says("needs a red family", "figures", "print('never')", needs=("build", "planted")),
        says("a tool that is not here", "hunt", "", needs=("build",)),
        *(says(f"at once {n}", "smoke", "import time; time.sleep(1)", together="pair", needs=("build",)) for n in range(2)),
        checks("replays", "replays", "replays", 100, "tests/test_tiny.py"),
        Step("figures", "figures", ("{python}", "-c", write, "{own}"), 30, needs=("build", "replays")),
    ]
    place = [step.name for step in table].index("a tool that is not here")
    table[place] = replace(table[place], command=("no-such-tool",))
    with Reader(out) as reader:
        code = script.run(table, out, HERE, "first", {})
    assert reader.wrong == [] and len(reader.summaries) > 20
    assert any("planted: test_hang" in summary["running"] for summary in reader.summaries)
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    found = {step["name"]: (step["status"], step["why"]) for step in summary["steps"]}
    for name, status in PLANTED.items():
        assert found.pop(f"planted: {name}")[0] == status
    assert found.pop("needs a red family") == ("not run", "planted not green")
    assert found.pop("no figure") == ("red", "no figure")
    assert found.pop("a tool that is not here") == ("red", "no-such-tool: No such file or directory")
    assert set(found.values()) == {("green", "")} and len(found) == len(table) - 6
    assert summary["success"] is True and code == 0 and summary["running"] == []
    failures = {step["name"]: step["failures"] for step in summary["steps"] if step["failures"]}
    for name in ("test_hang", "test_crash"):
        assert failures[f"planted: {name}"] == [[f"tools/gpu/planted.py::{name}", "was running"]]
    assert "max |result - oracle|" in failures["planted: test_wrong_answer"][0][1]
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    log = (out / "log.txt").read_text(encoding="utf-8")
    assert "done aside" in log and "bytes left out" in log and "the end" in log and len(log) < 2**20
    own = log.split("=== files of its own")[1].split("=== no figure")[0]
    parts = ("its words", "--- counters-decode_step.txt\nfirst", "bytes left out", " last", "--- gpu.log\nits log")
    assert sorted(own.index(part) for part in parts) == [own.index(part) for part in parts] and 100_000 < len(own) < 101_000
    assert "test_hang" in log and "Fatal Python error" not in log.split("planted: test_crash")[0]
    assert (out / "facts.txt").read_text().endswith("one fact\n") and "compiled" in (out / "build.log").read_text()
    assert json.loads((out / "gpu.json").read_text()) == {"figures": figure} and "| copy |" in (out / "gpu.md").read_text()
    assert "| at once 0 | green |" in (out / "smoke.md").read_text()
    assert {suite.get("name") for suite in xml.parse(out / "junit.xml").getroot()} >= {"planted: test_crash", "replays", "at once 1"}
    assert alive("sleep 601.5") == []
    printed = capsys.readouterr().out
    assert "success: every smoke test and every replay" in printed and "died     planted: test_crash: by signal 11" in printed


def test_a_red_smoke_test_is_no_success_and_nothing_starts_after_the_end(tmp_path: Path) -> None:
    table = [says("bad", "smoke", "raise SystemExit(3)"), says("good", "smoke", ""), says("late", "hunt", "")]
    assert script.run(table[:2], tmp_path / "one", HERE, "first", {}) == 1
    assert script.run(table[1:], tmp_path / "two", replace(HERE, seconds=runner.LEFT - 1), "first", {}) == 1
    steps = json.loads((tmp_path / "two" / "summary.json").read_text(encoding="utf-8"))["steps"]
    assert [(step["status"], step["why"]) for step in steps] == [("not run", "no time was left")] * 2


def test_a_gpu_that_does_not_answer_is_asked_before_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([False, False, True])
    monkeypatch.setattr(runner.Runner, "_ask", lambda self: next(answers))
    table = [says("bad", "tests", "raise SystemExit(1)"), says("lost", "tests", ""), says("back", "tests", "")]
    script.run(table, tmp_path / "out", HERE, "first", {})
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert [(step["status"], step["why"]) for step in summary["steps"]] == [
        ("red", "it ended with 1; after it the GPU does not answer"),
        ("not run", "the GPU does not answer"),
        ("green", ""),
    ]


def test_what_stands_in_for_a_red_build_is_waited_for(tmp_path: Path) -> None:
    slow = "import time; time.sleep(2)"
    table = [says(name, "build", slow, background=True, instead=instead) for name, instead in (("native", "build"), ("other", ""))]
    for code, order in ((1, ["build", "native", "triton", "other"]), (0, ["build", "triton", "native", "other"])):
        steps = [*table, says("build", "build", f"raise SystemExit({code})"), says("triton", "smoke", "")]
        script.run(steps, tmp_path / str(code), HERE, "first", {})
        summary = json.loads((tmp_path / str(code) / "summary.json").read_text(encoding="utf-8"))
        assert [step["name"] for step in summary["steps"]] == order


def test_a_folder_that_is_a_mount_is_written_straight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def apart(*_: object) -> None:
        raise OSError(number, "planted")

    monkeypatch.setattr(os, "replace", apart)
    (tmp_path / "out").mkdir()
    number = errno.EXDEV
    report.write(tmp_path / "out" / "smoke.md", "whole")
    assert [path.read_text() for path in tmp_path.rglob("*") if path.is_file()] == ["whole"]
    number = errno.ENOSPC
    with pytest.raises(OSError, match="planted"):
        report.write(tmp_path / "out" / "smoke.md", "other")


def test_an_older_scikit_build_core_passes_over_its_version() -> None:
    assert build.older("0.12.2") == ["--config-settings=minimum-version=0.12.2"] and build.older("1.0") == build.older("1.2.3") == []


@pytest.mark.parametrize(
    ("libraries", "targets", "words"),
    [
        ("libstdc++.so.6 => /lib/libstdc++.so.6\nlibc.so.6", ["sm_90a"], []),
        ("libcuda.so.1 => not found", ["sm_90a"], ["libcuda.so"]),
        ("libcudart.so.13 => /lib/libcudart.so.13", ["compute_90", "sm_80"], ["libcudart", "compute_90"]),
    ],
)
def test_a_module_for_another_gpu_or_with_other_libraries_is_objected_to(libraries: str, targets: list[str], words: list[str]) -> None:
    found = build.objections(libraries, targets, "90a-real")
    assert len(found) == len(words) and all(word in line for word, line in zip(words, found, strict=True))


def test_every_test_a_table_names_exists() -> None:
    steps = [*FIRST, *planted(), *every_branch(GREEN)]
    named = {part for step in steps for part in step.command if part.startswith(("tests/", "tools/"))}
    assert len(named) > 12
    for file, _, test in (name.partition("::") for name in named):
        path = ROOT / file
        assert path.exists(), file
        if test:
            assert test in {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}, (file, test)
    assert len({step.name for step in FIRST}) == len(FIRST)
    assert sum(step.limit for step in FIRST if step.kind in ("facts", "build") and not step.background) <= 120


@pytest.mark.parametrize("family", FAMILIES)
def test_a_red_family_gets_its_part_of_the_second_command(family: str) -> None:
    failing = "tests/kernels/cuda/test_smoke.py::test_project[8-bfloat16]"
    red = second(Before({**GREEN.green, family: False}, {family: failing}))
    names = [step.name for step in red]
    assert not {"tests, triton", "memcheck"} & set(names)
    assert [step.name for step in second(GREEN)][-2:] == ["tests, triton", "memcheck"]
    hunts = [step for step in red if step.kind == "hunt"]
    if family in ("decode_step", "hopper_attend"):
        assert all(family in step.name for step in hunts) and hunts
    elif family not in ("triton", "replays"):
        assert [failing in step.command for step in hunts] == [True] * 3
    assert any(step.environment.get("HEADCOUNT_HOPPER_ATTEND") == "never" for step in red) == (family == "hopper_attend")


def test_without_a_build_triton_runs_alone() -> None:
    steps = second(Before({**GREEN.green, "build": False}, {}))
    assert not any("cuda" in step.name.lower().replace("without cuda", "") for step in steps) and len(steps) > 5


def test_the_second_command_needs_the_first_ones_folder(tmp_path: Path) -> None:
    command = ["sh", str(ROOT / "tools" / "gpu.sh"), "second", "out"]
    environment = {"PYTHON": sys.executable, "PATH": "/bin:/usr/bin", "TMPDIR": str(tmp_path)}  # a machine without a first command
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "--from: expected the folder of the first command" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_second_command_finds_what_the_first_left_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "FOLDER", tmp_path / "own")
    monkeypatch.setattr(script, "FIRST", [says("build", "build", ""), says("triton", "smoke", "raise SystemExit(1)", family="triton")])
    seen: list[Before] = []
    monkeypatch.setattr(script, "second", lambda before: seen.append(before) or [])
    monkeypatch.setenv("HEADCOUNT_GPU_CWD", str(tmp_path))
    for command in ("first", "second"):
        monkeypatch.setattr(sys, "argv", ["tools.gpu", command, "out"])
        script.main()
    assert [before.green for before in seen] == [{"build": True, "triton": False}]


@pytest.mark.parametrize(
    ("reasons", "demand", "status"),
    [
        (["there is a GPU", None], True, "green"),
        (["there is a GPU", "the module _cuda is not built"], True, "red"),
        (["the module _cuda is not built", None], True, "red"),
        (["the module _cuda is not built", None], False, "green"),
        (["there is a GPU"], False, "red"),
    ],
)
def test_skipped_tests_are_no_success(reasons: list[str | None], demand: bool, status: str, tmp_path: Path) -> None:
    suite = xml.SubElement(xml.Element("testsuites"), "testsuite")
    for number, reason in enumerate(reasons):
        case = xml.SubElement(suite, "testcase", classname="tests.test_it", name=f"test_{number}")
        if reason is not None:
            xml.SubElement(case, "skipped", message=reason)
    (tmp_path / "junit.xml").write_bytes(b"<testsuites>" + xml.tostring(suite) + b"</testsuites>")
    step = checks("some", "smoke", "project", 15, "tests/test_it.py")
    assert outcome(step, End(0, False, 1.0), tmp_path, b"", demand=demand).status == status
