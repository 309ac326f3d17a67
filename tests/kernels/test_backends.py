"""The table of backends: what turns an untried one into the automatic choice, and the variables it reads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from engine_kernels import backends
from engine_kernels.backends import Wanted, resolve
from engine_kernels.errors import KernelError

ROOT = Path(__file__).parents[2]


def test_one_entry_makes_a_tried_backend_the_automatic_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADCOUNT_CUDA_EMULATED", raising=False)
    monkeypatch.setattr(backends, "_no_nvidia_gpu", lambda wanted: None)  # as if there were one, with the module built for it
    monkeypatch.setitem(backends.TRIED, "cuda", None)
    assert "when named" in dict((r.name, r.reason) for r in resolve("auto", Wanted()).refusals)["cuda"]
    monkeypatch.setitem(backends.TRIED, "cuda", "gpu.json")
    assert resolve("auto", Wanted()).name == "cuda"
    choice = resolve("auto", Wanted(dtype="float32"))
    assert choice.name != "cuda" and "float16" in dict((r.name, r.reason) for r in choice.refusals)["cuda"]


def test_the_interpreter_is_no_automatic_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton is not installed: pip install 'headcount[gpu]'", exc_type=ImportError)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setitem(backends.TRIED, "triton", "gpu.json")
    choice = resolve("auto", Wanted(dtype="float32"))
    assert choice.name != "triton"
    assert "TRITON_INTERPRET" in dict((r.name, r.reason) for r in choice.refusals)["triton"]
    assert resolve("triton", Wanted(dtype="float32")).name == "triton"


def test_what_is_called_tried_has_its_rows_and_readme_says_the_same() -> None:
    """The support table's columns follow TRIED, whose entries name files of bench/results."""
    assert [file for file in backends.TRIED.values() if file is not None and not (ROOT / "bench" / "results" / file).is_file()] == []
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("| source format"))
    names = re.findall(r"`(\w+)`", lines[start].split("|", 2)[2])
    rows = [line.strip("| ").split(" | ")[1:] for line in lines[start + 2 :] if line.startswith("|")][:5]
    assert len(rows) == 5 and {"cuda", "triton"} <= set(names)
    for row in rows:
        for name, cell in zip(names, row, strict=True):
            assert cell == ("untried" if name in backends.TRIED and backends.TRIED[name] is None else "✓"), f"{name}: {row}"


def test_the_old_name_of_the_emulators_variable_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_CUDA_EMULATED", "1")
    with pytest.raises(KernelError, match="HEADCOUNT_CUDA_EMULATED"):
        resolve("cuda", Wanted())
