"""The GPU benchmark as far as a machine without one can try it: every path in the interpreter, the refusals, the parts and their order."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.suites.gpu.plan import GpuRequest, Part, parts_of
from engine.errors import InputError
from engine_kernels.backends import no_gpu

ROOT = Path(__file__).parents[2]
CUDA = importlib.util.find_spec("engine_kernels._cuda_emulated") is not None  # with the kernels of CUDA C++ too

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed: pip install 'headcount[gpu]'")


def bench_gpu(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", "gpu", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500)


def test_every_part_runs_in_the_interpreter(tmp_path: Path) -> None:
    done = bench_gpu("--interpret", "--tiny", "--out", str(tmp_path), "--minutes", "24")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert found["interpreted"] and found["device"] is None and found["failed"] == found["died"] == []
    missing = ["cost of a graph node", "counters", "decode, torch.compile"]
    assert [reason.split(":")[0] for reason in found["missing"]] == ([] if CUDA else ["cuda"]) + missing
    figures = found["figures"]
    sections = [figure["section"] for figure in figures]
    assert {name: sections.count(name) for name in sections} == {
        "card": 2,
        "decode": 4 + 2 * CUDA,
        "token": 4 + 2 * CUDA,
        "score": 4 + 2 * CUDA,
        "attention": 5 + 2 * CUDA,
        "relative": 3 + CUDA,
        "barrier": 1,
    }
    gated = [figure for figure in figures if "gate" in figure]
    assert len(gated) == 13 + 8 * CUDA and all(figure["gate"]["difference"] <= figure["gate"]["limit"] for figure in gated)
    ours = [figure for figure in figures if figure["case"].startswith(("cuda", "triton")) and figure["section"] != "relative"]
    assert len(ours) == 8 + 8 * CUDA and all(figure["gate"] and figure["kernels"] for figure in ours)
    kernels = {figure["section"]: figure["kernels"] for figure in ours if figure["case"].startswith("cuda")}
    if CUDA:  # sizes that the two kernels for Hopper take
        assert kernels["decode"] == ["decode_step"] and kernels["attention"] == ["hopper_attend"] and "hopper_attend" in kernels["score"]
    for figure in figures:
        if figure["section"] in ("decode", "attention"):
            assert figure["cache"] == "warm" and figure["flushed"]["seconds"] > 0
    table = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert "no time here is a figure of a GPU" in table and table.count("\n|") == 2 + len(sections)


@pytest.mark.skipif(no_gpu() is None, reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path: Path) -> None:
    done = bench_gpu("--out", str(tmp_path / "new"))
    assert done.returncode == 1 and "GPU" in done.stderr and "--interpret --tiny" in done.stderr
    assert bench_gpu("--interpret", "--out", str(tmp_path / "new")).returncode == 1
    assert not (tmp_path / "new").exists()


def test_the_more_wanted_parts_come_first_and_what_compiles_for_long_last() -> None:
    names = [part.name for part in parts_of(GpuRequest("."))]
    assert names[:6] == ["card", "decode, cuda", "decode, triton", "decode, torch", "attention, cuda", "attention, triton"]
    assert names[-3:] == ["counters", "decode, compiled", "attention, compiled"] and len(names) == len(set(names)) == 18


def test_parts_are_chosen_by_section_and_backend() -> None:
    def names(*given: list[str]) -> list[str]:
        return [part.name for part in parts_of(GpuRequest("."), *given)]

    assert names(["decode", "card"], ["triton", "cuda"]) == ["card", "decode, cuda", "decode, triton"]
    assert names(["score"]) == ["score, cuda", "score, triton", "score, torch"]
    for given, found in (([["cards"]], "'cards'"), ([[], ["cpu"]], "'cpu'"), ([["score"], ["compiled"]], "compiled")):
        with pytest.raises(InputError, match=found):
            names(*given)


def test_a_part_survives_the_way_to_its_process() -> None:
    part = parts_of(GpuRequest("/out", "float16", True, True, (1, 16), (3072,)), ["decode"])[0]
    assert Part.from_json(part.to_json()) == part
