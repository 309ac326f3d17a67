"""Seconds of one call on a device: queued behind a spin so that no event waits for the host, with caches warm and flushed."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import ceil
from typing import Any

import numpy as np
import torch

Work = Callable[[], object]
CYCLES = 2_000_000  # of a spin of about 1 ms
SPINS = (1, 8, 64)  # ms: the next one where the host is not done in time
LEAST = 200e-6  # seconds between two events; a shorter call is repeated
MOST_CALLS = 32  # a GPU's queue holds about a thousand launches
CACHES = 4  # a flush writes so many times the second-level cache


class Clock:
    """Medians of `rounds` samples; on a CPU, where the interpreter runs, simply by the host."""

    def __init__(self, device: torch.device, rounds: int) -> None:
        self._device = device
        self._rounds = rounds
        self._on_gpu = device.type == "cuda"
        cache = torch.cuda.get_device_properties(device).L2_cache_size if self._on_gpu else 1 << 10
        self._buffer = torch.empty(CACHES * cache, dtype=torch.uint8, device=device)

    def both(self, work: Work) -> dict[str, Any]:
        """One call after others of the same data (`cache`: warm); under `flushed` one that finds nothing of it in the cache."""
        return {**self.warm(work), "cache": "warm", "flushed": self._sampled(work, 1, self._flush)}

    def warm(self, work: Work) -> dict[str, Any]:
        """seconds, p10 and p90 of one call after others; timed: how."""
        for _ in range(2 if self._on_gpu else 0):
            work()
        return self._sampled(work, self._calls(work), lambda: None)

    def host(self, work: Work) -> dict[str, Any]:
        """The same by the host's clock, for work that waits for its results."""
        for _ in range(2 if self._on_gpu else 0):
            work()
        return {**_percentiles([self._by_host(work) for _ in range(self._rounds)]), "timed": "by the host, results on the host"}

    def _sampled(self, work: Work, calls: int, prepare: Callable[[], None]) -> dict[str, Any]:
        if not self._on_gpu:
            samples = []
            for _ in range(self._rounds):
                prepare()
                samples.append(self._by_host(work))
            return {**_percentiles(samples), "timed": "by the host, in the interpreter"}
        spin, samples, late = SPINS[0], [], 0
        for _ in range(self._rounds):
            seconds, spin, in_time = self._queued(work, calls, prepare, spin)
            samples.append(seconds)
            late += not in_time
        found = {**_percentiles(samples), "timed": f"calls between two events: {calls}, behind {spin} ms of spinning"}
        return found if not late else {**found, "late": late}  # samples in which the device waited for the host

    def _calls(self, work: Work) -> int:
        """How many calls stand between two events."""
        if not self._on_gpu:
            return 1
        seconds, _, _ = self._queued(work, 1, lambda: None, SPINS[0])
        return min(max(ceil(LEAST / max(seconds, 1e-6)), 1), MOST_CALLS)

    def _queued(self, work: Work, calls: int, prepare: Callable[[], None], spin: int) -> tuple[float, int, bool]:
        """Seconds of a call, the spin that kept the device from the first event until all was queued, and whether it did."""
        for length in [each for each in SPINS if each >= spin]:
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            prepare()
            torch.cuda._sleep(length * CYCLES)  # type: ignore[no-untyped-call]
            first.record()
            for _ in range(calls):
                work()
            last.record()
            in_time = not first.query()  # type: ignore[no-untyped-call]
            last.synchronize()
            if in_time:
                break
        return float(first.elapsed_time(last)) / 1e3 / calls, length, in_time

    def _by_host(self, work: Work) -> float:
        self._synchronize()
        start = time.perf_counter()
        work()
        self._synchronize()
        return time.perf_counter() - start

    def _synchronize(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize(self._device)

    def _flush(self) -> None:
        self._buffer.fill_(1)


def _percentiles(samples: list[float]) -> dict[str, float]:
    low, middle, high = (float(value) for value in np.percentile(samples, (10, 50, 90)))
    return {"seconds": middle, "p10": low, "p90": high}
