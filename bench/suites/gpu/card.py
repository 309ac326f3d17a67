"""What the card itself can do: bytes copied, multiplications."""

from __future__ import annotations

from bench.suites.gpu.figures import Run


def measure(run: Run) -> None:
    run.attempt("copy bandwidth", lambda: _copy(run))
    run.attempt("matmul peak", lambda: _matmul(run))


def _copy(run: Run) -> None:
    source, target = run.copied()
    took = run.clock.warm(lambda: target.copy_(source))
    run.add("card", "copy", **took, bytes_per_second=2 * source.nbytes / took["seconds"])


def _matmul(run: Run) -> None:
    a = run.square()
    took = run.clock.warm(lambda: a @ a)
    run.add("card", "matmul", **took, flops=2 * len(a) ** 3 / took["seconds"])
