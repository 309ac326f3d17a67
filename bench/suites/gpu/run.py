"""A run: its parts one after the other, each in a process of its own, and what they tell written down at once. Without torch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from bench.suites.gpu import supervise
from bench.suites.gpu.plan import GpuRequest, Part
from bench.suites.gpu.report import Report, cannot_be_written
from engine.errors import EngineError, Problem
from engine_kernels.backends import no_gpu

WORTH_STARTING = 10.0  # seconds: less than a process takes until its first figure


def measure(asked: GpuRequest, parts: Sequence[Part], minutes: float) -> Report:
    """gpu.json, gpu.md and gpu.log, the words of all parts, in asked.out; raises EngineError without a GPU, before anything is written.

    A part that dies is missing with its reason. After such a one the GPU is asked; where it does not answer, so is the rest.
    """
    deadline = time.monotonic() + 60 * minutes
    if not asked.interpret and (reason := no_gpu()) is not None:
        raise EngineError(Problem("device", "a GPU", reason), hint="--interpret --tiny tries everything without one, and has no figures")
    report = Report(asked)
    log = report.folder / "gpu.log"
    try:
        report.folder.mkdir(parents=True, exist_ok=True)
        log.write_text("", encoding="utf-8")
    except OSError as error:
        raise cannot_be_written(report.folder, error) from None
    lost = None
    for part in parts:
        left = deadline - time.monotonic()
        if lost is not None or left < WORTH_STARTING:
            report.miss(f"{part.name}: {lost or 'no time was left'}")
            continue
        part = replace(part, seconds=min(part.seconds, left), described=bool(report.about))
        if (death := supervise.watch(part, log, report.take)) is not None:
            report.died.append(part.name)
            report.miss(death)
            if (silence := supervise.probe(asked.device, log)) is not None:
                lost = f"the GPU does not answer: {silence}"
    report.write()
    return report
