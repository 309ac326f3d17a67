"""What the GPU benchmark times, and what keeps a figure from being one: on the CUDA emulator, in this process, with faults planted."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from bench.suites.gpu.plan import SECTIONS, GpuRequest, Part

pytest.importorskip("triton", reason="Triton is not installed: pip install 'headcount[gpu]'", exc_type=ImportError)
pytest.importorskip("engine_kernels._cuda_emulated", reason="the module _cuda_emulated is not built")

import torch

from bench.suites.gpu import attention, card, counters, decode, next_token, score
from bench.suites.gpu.clock import SPINS, Clock
from bench.suites.gpu.figures import Run, begin
from bench.suites.gpu.models import models
from engine.backends.gpu.runner import GpuRunner
from engine.backends.runner import Batch, StepResult
from engine_kernels.cuda_ops import CudaKernels

CPU, ROOT = torch.device("cpu"), Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADCOUNT_CUDA_EMULATED", "1")


def run_of(section: str, **sizes: tuple[int, ...]) -> tuple[Run, list[dict[str, Any]]]:
    """A run of the cuda backend in the emulator, and the list of what it tells."""
    told: list[dict[str, Any]] = []
    asked = GpuRequest(".", "float16", interpret=True, tiny=True, **sizes)
    run = begin(Part(section, SECTIONS[section].module, "cuda", 60.0, asked, described=True), told.append)
    assert run is not None
    return run, told


def cases(told: list[dict[str, Any]]) -> list[str]:
    return [event["figure"]["case"] for event in told if "figure" in event]


def reasons(told: list[dict[str, Any]], kind: str) -> list[str]:
    return [event[kind] for event in told if kind in event]


# ---- what is timed


def test_timed_rows_have_slots_of_their_own_and_no_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of heads of 8, whose layers are kernels of their own: what the first of them reads."""
    run, _ = run_of("decode")
    run.sizes = replace(run.sizes, geometry=replace(run.sizes.geometry, head_dim=8))
    runner, seen = models(run)[0].ours, []
    project_heads = runner.kernels.project_heads

    def noted(x: torch.Tensor, weight: Any, bias: Any, norm: Any, rings: Any, slots: torch.Tensor, positions: torch.Tensor) -> Any:
        seen.append((x.clone(), [ring[slots].clone() for ring in rings], slots.tolist(), positions.tolist()))
        return project_heads(x, weight, bias, norm, rings, slots, positions)

    monkeypatch.setattr(runner.kernels, "project_heads", noted)
    for rows in (1, 4):
        with runner.decode_step(rows) as step:
            seen.clear()
            step()
        assert len(seen) == len(runner.layers)
        for x, rings, slots, positions in seen:
            assert len(slots) == rows == len(set(slots))
            assert min(positions) >= run.sizes.geometry.window  # every ring is full
            for numbers in (x, *rings):
                assert len({row.numpy().tobytes() for row in numbers}) == rows
                assert float((numbers == 0).float().mean()) < 0.01


def test_the_card_copies_and_multiplies_no_zeros() -> None:
    run, told = run_of("card")
    for numbers in (run.copied()[0], run.square()):
        assert float((numbers == 0).float().mean()) < 0.01
    card.measure(run)
    assert cases(told) == ["copy", "matmul"]


@pytest.mark.parametrize(("section", "module"), [("decode", decode), ("score", score), ("token", next_token)])
def test_a_step_that_was_given_up_while_it_was_timed_is_no_figure(
    section: str, module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[str] = []

    def noting(of: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            found = of(*arguments)
            timed.append(section)
            return found

        return wrapped

    def check(runner: GpuRunner) -> None:
        if timed:
            raise RuntimeError("given up")

    run, told = run_of(section)
    for name in ("both", "host"):
        monkeypatch.setattr(Clock, name, noting(getattr(Clock, name)))
    monkeypatch.setattr(type(models(run)[0].ours), "check_after_replays", check)
    module.measure(run)
    assert timed and cases(told) == []
    assert reasons(told, "missing") and all("RuntimeError: given up" in reason for reason in reasons(told, "missing"))


# ---- gates


def test_attention_is_gated_on_every_sequence_that_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five sequences, one number of the fourth wrong."""
    attend = CudaKernels.attend

    def wrong(kernels: CudaKernels, *arguments: Any) -> torch.Tensor:
        out = attend(kernels, *arguments)
        out[3 * 12 + 7, 1, 5] += 0.5
        return out

    run, told = run_of("attention", rows=(60,))
    attention.measure(run)
    assert cases(told)[0] == "cuda, 2 heads, 60 rows" and len(cases(told)) == 3
    monkeypatch.setattr(CudaKernels, "attend", wrong)
    told.clear()
    attention.measure(run)
    assert cases(told) == [] and len(reasons(told, "failed")) == 2


def test_a_decode_step_is_gated_at_the_batch_that_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One number of a step of two rows wrong, others right."""
    step = GpuRunner.step

    def wrong(runner: GpuRunner, batch: Batch) -> StepResult:
        result = step(runner, batch)
        if len(batch.slots) == 2:
            assert result.hidden is not None
            result.hidden[1, 7] += 0.5
        return result

    monkeypatch.setattr(GpuRunner, "step", wrong)
    run, told = run_of("decode", batches=(2, 1))
    decode.measure(run)
    assert cases(told) == ["cuda, 12 heads, batch 1", "cuda, 4 heads, batch 1"]
    assert ["batch 2" in reason for reason in reasons(told, "failed")] == [True, True]
    assert reasons(told, "missing") == []


def test_a_score_is_gated_with_a_whole_window_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """One number of the second segment wrong."""
    step = GpuRunner.step

    def wrong(runner: GpuRunner, batch: Batch) -> StepResult:
        result = step(runner, batch)
        if int(batch.starts[0]) == 12:
            assert result.nll is not None
            result.nll[-1] += 0.5
        return result

    monkeypatch.setattr(GpuRunner, "step", wrong)
    run, told = run_of("score")
    score.measure(run)
    assert cases(told) == [] and len(reasons(told, "failed")) == 2


def test_replays_that_differ_are_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    run, told = run_of("decode", batches=(1,))
    both = Clock.both

    def moving(clock: Clock, step: Any) -> dict[str, Any]:
        found = both(clock, step)
        step.results[0][0, 3] += 1
        return found

    monkeypatch.setattr(Clock, "both", moving)
    decode.measure(run)
    assert cases(told) == [] and all(reason.endswith("replays of the same rows differ") for reason in reasons(told, "failed"))


# ---- counters


def test_counters_are_of_kernels_there_are_and_leave_the_clocks_alone() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "kernels" / "csrc" / "cuda").rglob("*.cu"))
    for kernel, function in counters.FUNCTIONS.items():
        command = counters.command("/bin/ncu", kernel, "bfloat16", Path("/out/file"))
        assert command[:3] == ["/bin/ncu", "--clock-control", "none"] and command[-3:] == ["bench.suites.gpu.counters", kernel, "bfloat16"]
        pattern = command[command.index("--kernel-name") + 1].removeprefix("regex:")
        assert re.search(pattern, function) and re.search(rf"__global__[^;{{]*\b{function}\(", sources)


@pytest.mark.parametrize("kernel", counters.FUNCTIONS)
def test_what_runs_under_the_profiler_starts_its_kernel_often_enough(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    run, _ = run_of("counters")
    run.backend = "cuda"
    monkeypatch.setattr(CudaKernels, "__init__", lambda self, device, of=CudaKernels.__init__: (of(self, device), started.append(self))[0])
    counters.launch(run, kernel)
    assert sum(kernels.calls[kernel] for kernels in started) >= counters.SKIPPED + 1


def test_a_profiler_that_says_nothing_of_the_kernel_is_missing_and_its_file_is_a_figure(tmp_path: Path) -> None:
    """A script in the place of ncu, which writes as much into its file as it finds at the end of its name."""
    run, told = run_of("counters")
    run.out = str(tmp_path)
    for word in ("nothing", "hopper_kernel"):
        program = tmp_path / f"ncu-{word}"
        program.write_text(f"#!{sys.executable}\nimport sys\nopen(sys.argv[sys.argv.index('--log-file') + 1], 'w').write('{word}')\n")
        program.chmod(0o755)
        counters._profile(run, str(program), "hopper_attend")
    assert told[0]["missing"].startswith("counters, hopper_attend: exit status 0, and counters-hopper_attend.txt does not have the kernel")
    assert told[1]["figure"] == {"section": "counters", "case": "hopper_attend", "file": "counters-hopper_attend.txt"}


# ---- the clock of a GPU, with notes in place of PyTorch's calls


class Device:
    """A GPU on which a spin of `enough` or more milliseconds is still going on when all is queued; each call takes 30 µs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, enough: int) -> None:
        self.notes: list[str] = []
        self.spin = 0
        device = self

        class Event:
            def __init__(self, **_: Any) -> None:
                self.calls = 0

            def record(self) -> None:
                device.notes.append("event")
                self.calls = device.notes.count("call")

            def query(self) -> bool:
                return device.spin < enough

            def synchronize(self) -> None:
                pass

            def elapsed_time(self, later: Event) -> float:
                return 0.03 * (later.calls - self.calls)

        def sleep(cycles: int) -> None:
            self.spin = cycles // 2_000_000
            self.notes.append(f"spin {self.spin}")

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "_sleep", sleep)

    def clock(self, monkeypatch: pytest.MonkeyPatch) -> Clock:
        clock = Clock(CPU, 3)
        monkeypatch.setattr(clock, "_on_gpu", True)
        monkeypatch.setattr(clock, "_flush", lambda: self.notes.append("flush"))
        return clock

    def call(self) -> None:
        self.notes.append("call")


def test_calls_are_queued_behind_a_spin_and_short_ones_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch, enough=1)
    found = device.clock(monkeypatch).both(device.call)
    once = ["spin 1", "event", "call", "event"]
    several = ["spin 1", "event", *["call"] * 7, "event"]  # 210 µs
    assert device.notes == ["call", "call", *once, *several * 3, *["flush", *once] * 3]
    assert found["cache"] == "warm" and found["seconds"] == pytest.approx(30e-6) == found["flushed"]["seconds"]
    assert found["timed"] == "calls between two events: 7, behind 1 ms of spinning" and "late" not in found


def test_a_spin_grows_until_all_is_queued_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch, enough=8)
    found = device.clock(monkeypatch).warm(device.call)
    assert [note for note in device.notes if note.startswith("spin")] == ["spin 1", "spin 8", "spin 1", "spin 8", "spin 8", "spin 8"]
    assert found["timed"].endswith("behind 8 ms of spinning") and "late" not in found


def test_samples_that_waited_for_the_host_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch, enough=SPINS[-1] + 1)
    assert device.clock(monkeypatch).warm(device.call)["late"] == 3


def test_a_cpu_is_timed_by_the_host() -> None:
    calls: list[np.ndarray] = []
    found = Clock(CPU, 4).host(lambda: calls.append(np.zeros(1)))
    assert len(calls) == 4 and found["p10"] <= found["seconds"] <= found["p90"]
