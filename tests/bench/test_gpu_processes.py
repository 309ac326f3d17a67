"""A run of the GPU benchmark that is killed, and parts of it that hang, crash or get no answer: what was measured is kept."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.suites.gpu import plan, run, supervise
from bench.suites.gpu.plan import GpuRequest, Section
from bench.suites.gpu.report import Report
from engine_kernels.backends import no_gpu

ROOT = Path(__file__).parents[2]
PATIENCE = 300.0  # seconds a test waits for what must come

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed: pip install 'headcount[gpu]'")

# Sections of a part's own process. Each tells one figure before.
PLANTED = {
    "endless": """
        import subprocess, time
        from pathlib import Path

        def without_end():
            while True:
                time.sleep(1)

        def measure(run):
            run.add("endless", "before", seconds=1.0)
            started = subprocess.Popen(["sleep", "3600"])
            (Path(run.out) / "started").write_text(str(started.pid))
            run.attempt("a loop", without_end)
    """,
    "waiting": """
        import os, time
        from pathlib import Path

        def measure(run):
            (Path(run.out) / "started").write_text(str(os.getpid()))
            run.add("waiting", "before", seconds=1.0)
            time.sleep(3600)
    """,
    "crash": """
        import os, signal

        def measure(run):
            run.add("crash", "before", seconds=2.0)
            run.attempt("a crash", lambda: os.kill(os.getpid(), signal.SIGSEGV))
    """,
    "error": """
        def measure(run):
            run.attempt("a division", lambda: 1 / 0)
            run.add("error", "after", seconds=3.0)
    """,
}


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


def gone(pid: int) -> bool:
    """Whether a process has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def write_planted(folder: Path) -> Path:
    folder.mkdir()
    for name, text in PLANTED.items():
        (folder / f"planted_{name}.py").write_text(textwrap.dedent(text), encoding="utf-8")
    return folder


def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *names: str, seconds: float = 60.0, minutes: float = 30.0) -> Report:
    """A run in the interpreter of planted sections and real ones."""
    monkeypatch.syspath_prepend(str(write_planted(tmp_path / "planted")))
    sections = {name: Section(f"planted_{name}", (None,), seconds) for name in PLANTED} | {"card": plan.SECTIONS["card"]}
    monkeypatch.setattr(plan, "SECTIONS", {name: sections[name] for name in names})
    asked = GpuRequest(str(tmp_path / "out"), "float16", interpret=True, tiny=True)
    return run.measure(asked, plan.parts_of(asked), minutes)


@pytest.mark.skipif(sys.platform != "linux", reason="only there a process can ask to die with its parent")
def test_a_run_that_is_killed_leaves_its_figures_and_no_process(tmp_path: Path) -> None:
    """While a part measures nothing, so that no broken pipe ends it."""
    out = tmp_path / "out"
    command = f"""
import sys
sys.path.insert(0, {str(write_planted(tmp_path / "planted"))!r})
from bench.suites.gpu import plan
plan.SECTIONS = {{"card": plan.SECTIONS["card"], "waiting": plan.Section("planted_waiting", (None,), 600)}}
sys.argv = ["bench", "gpu", "--interpret", "--tiny", "--minutes", "60", "--out", {str(out)!r}]
from bench.cli import main
main()
"""
    child = subprocess.Popen([sys.executable, "-c", command], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: (out / "gpu.json").exists() and "waiting" in (out / "gpu.json").read_text(encoding="utf-8"))
    finally:
        child.kill()
        child.wait(PATIENCE)
    found = json.loads((out / "gpu.json").read_text(encoding="utf-8"))
    assert [figure["case"] for figure in found["figures"]] == ["copy", "matmul", "before"]
    assert "| card | matmul |" in (out / "gpu.md").read_text(encoding="utf-8")
    until(lambda: gone(int((out / "started").read_text(encoding="utf-8"))))


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_a_part_that_hangs_is_killed_with_what_it_started_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = measured(tmp_path, monkeypatch, "endless", "card", seconds=5)
    assert [(figure["section"], figure["case"]) for figure in report.figures] == [
        ("endless", "before"),
        ("card", "copy"),
        ("card", "matmul"),
    ]
    assert report.died == ["endless"] and len(report.missing) == 1
    assert report.missing[0].startswith("endless: not done after 25 s, at a loop; last words: Timeout")
    assert "in without_end" in report.missing[0]  # where it stood
    until(lambda: gone(int((tmp_path / "out" / "started").read_text(encoding="utf-8"))))
    written = json.loads((tmp_path / "out" / "gpu.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(report.record()))


def test_a_part_that_crashes_is_missing_with_its_last_words_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = measured(tmp_path, monkeypatch, "crash", "error")
    assert [figure["section"] for figure in report.figures] == ["crash", "error"]
    assert report.died == ["crash"]
    assert report.missing[0].startswith("crash: ended by SIGSEGV, at a crash; last words: Fatal Python error: Segmentation fault")
    assert report.missing[1:] == ["a division: ZeroDivisionError: division by zero"]
    assert "== probe" in (tmp_path / "out" / "gpu.log").read_text(encoding="utf-8")


def test_where_the_device_does_not_answer_after_a_death_the_rest_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "probe", lambda device, log: f"{device} is silent")
    report = measured(tmp_path, monkeypatch, "crash", "error", "card")
    assert [figure["section"] for figure in report.figures] == ["crash"]
    assert report.missing[1:] == [f"{name}: the GPU does not answer: cpu is silent" for name in ("error", "card")]
    assert "== error" not in (tmp_path / "out" / "gpu.log").read_text(encoding="utf-8")


def test_nothing_starts_when_no_time_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = measured(tmp_path, monkeypatch, "error", "card", minutes=0.1)
    assert report.figures == [] and report.missing == ["error: no time was left", "card: no time was left"]
    assert json.loads((tmp_path / "out" / "gpu.json").read_text(encoding="utf-8"))["missing"] == report.missing


def test_the_probe_says_whether_a_device_answers(tmp_path: Path) -> None:
    log = tmp_path / "gpu.log"
    assert supervise.probe("cpu", log) is None
    if no_gpu() is not None:
        assert "got no answer; last words: " in str(supervise.probe("cuda", log))


def test_a_probe_that_waits_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's place is taken by a module that never answers."""
    (tmp_path / "torch.py").write_text("import time\n\ndef arange(*_, **__):\n    time.sleep(3600)\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(supervise, "ANSWERS_WITHIN", 1.0)
    reason = supervise.probe("cpu", tmp_path / "gpu.log")
    assert reason is not None and "Timeout" in reason and "in arange" in reason


def test_words_for_an_end() -> None:
    assert supervise.ended(3) == "exit status 3" and supervise.ended(-signal.SIGABRT) == "ended by SIGABRT"


def test_files_are_whole_while_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that stops halfway changes nothing that was there."""
    report = Report(GpuRequest(str(tmp_path)))
    report.take({"figure": {"section": "card", "case": "copy", "seconds": 1.0}})
    before = {name: (tmp_path / name).read_bytes() for name in ("gpu.json", "gpu.md")}

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        report.miss("something")
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
