"""The one timer: engines take turns, A B C A B C …, so that a slow moment of the machine falls on all of them alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

PERCENTILES = (10, 25, 50, 75, 90, 99)
Advance = Callable[[], None]


@dataclass(frozen=True)
class Reported:
    """What a call that runs in another process returns: the seconds it took there."""

    seconds: float


def interleaved(
    work: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int, advance: Advance, settle: float = 0.0
) -> dict[str, list[float]]:
    """Seconds of each call of each engine; sample i of every engine is of the same round. Collections happen between samples.

    settle: seconds of rest before each call, for thread pools of the engine before that wait by spinning.
    """
    samples: dict[str, list[float]] = {name: [] for name in work}
    for index in range(warmup + rounds):
        for name, run in work.items():
            gc.collect(0)
            time.sleep(settle)
            gc.disable()
            try:
                start = time.perf_counter()
                found = run()
                seconds = found.seconds if isinstance(found, Reported) else time.perf_counter() - start
            finally:
                gc.enable()
            if index >= warmup:
                samples[name].append(seconds)
            advance()
    return samples


def percentiles(samples: Sequence[float]) -> dict[str, float]:
    """{"10": …, …, "99": …}, linear between samples."""
    return {str(p): float(value) for p, value in zip(PERCENTILES, np.percentile(samples, PERCENTILES), strict=True)}


def paired_ratio(slower: Sequence[float], faster: Sequence[float]) -> float:
    """Median over the rounds of slower / faster."""
    return float(np.median(np.asarray(slower) / np.asarray(faster)))


@contextmanager
def bar(what: str, steps: int, *, quiet: bool) -> Iterator[Advance]:
    """A progress bar on standard error; nothing when quiet or where that is not a terminal."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal, transient=True) as progress:
        task = progress.add_task(what, total=steps)
        yield lambda: progress.advance(task)
