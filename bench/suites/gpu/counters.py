"""The hardware counters of one launch each of the two kernels for Hopper, by Nsight Compute, into counters-KERNEL.txt.

`python -m bench.suites.gpu.counters KERNEL DTYPE` is what runs under it. Clocks are left alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from bench.suites.gpu.child import die_with_the_parent
from bench.suites.gpu.figures import Run, begin
from bench.suites.gpu.plan import GpuRequest, Part

FUNCTIONS = {"decode_step": "decode_step", "hopper_attend": "hopper_kernel"}  # an operation → its kernel's name
SKIPPED = 2  # launches before the one that is looked at
SECONDS = 55


def measure(run: Run) -> None:
    ncu = shutil.which("ncu")
    if ncu is None or run.device.type != "cuda":
        run.miss(f"counters: {'ncu is not on PATH' if ncu is None else 'there is no GPU'}")
        return
    for kernel in FUNCTIONS:
        run.attempt(f"counters, {kernel}", partial(_profile, run, ncu, kernel))


def command(ncu: str, kernel: str, dtype: str, file: Path) -> list[str]:
    """Of one launch, after SKIPPED others of the same kernel."""
    profiler = [ncu, "--clock-control", "none", "--target-processes", "all", "--set", "full", "--log-file", str(file)]
    chosen = ["--kernel-name", f"regex:^{FUNCTIONS[kernel]}", "--launch-skip", str(SKIPPED), "--launch-count", "1"]
    return [*profiler, *chosen, sys.executable, "-m", "bench.suites.gpu.counters", kernel, dtype]


def _profile(run: Run, ncu: str, kernel: str) -> None:
    file = Path(run.out) / f"counters-{kernel}.txt"
    environment = {**os.environ, "HEADCOUNT_GPU_GRAPHS": "0"}  # each launch by itself
    status = subprocess.run(command(ncu, kernel, run.dtype, file), env=environment, timeout=SECONDS).returncode
    if status or not file.exists() or FUNCTIONS[kernel] not in file.read_text(encoding="utf-8", errors="replace"):
        run.miss(f"counters, {kernel}: exit status {status}, and {file.name} does not have the kernel; gpu.log has its words")
        return
    run.add("counters", kernel, file=file.name)


def launch(run: Run, kernel: str) -> None:
    """The kernel a few times, at the sizes that are measured: one sequence's steps of the dense model, or the first attention."""
    if kernel == "decode_step":
        from bench.suites.gpu.models import models

        step: Callable[[], object] = models(run)[0].ours.decode_step(1)  # which runs it once
    else:
        from bench.suites.gpu.attention import draw, ours

        step = ours(run, draw(run, run.sizes.heads[0], run.sizes.rows[0]))
    for _ in range(SKIPPED + 1):
        step()


def main(kernel: str, dtype: str) -> None:
    die_with_the_parent()
    part = Part("counters", __name__, "cuda", SECONDS, GpuRequest(out=".", dtype=dtype), described=True)
    run = begin(part, lambda event: print(event, flush=True))
    if run is None:
        sys.exit("counters: the cuda backend does not run here")
    launch(run, kernel)
    torch.cuda.synchronize()


if __name__ == "__main__":
    main(*sys.argv[1:])
