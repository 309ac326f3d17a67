"""What holds for every test, and what a run shows at its end."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from engine_kernels import native
from engine_kernels.backends import no_gpu

if no_gpu() is not None:  # Triton reads it when any test first imports it, and keeps what it read
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True, scope="session")
def exact_by_default() -> Iterator[None]:
    """Tests that name no dtype are of the exact path: `auto` is bfloat16 on processors that multiply it directly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "_MULTIPLIES_BFLOAT16", ())
        yield


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What became of the damaged files of tests/checkpoint/test_mutation.py."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports if hasattr(report, "when")]
    found = [value for report in reports if report.when == "call" for name, value in report.user_properties if name == "outcomes"]
    if not found:
        return
    total: Counter[str] = Counter()
    terminalreporter.section("damaged files")
    for kind, outcomes in sorted(found):
        total.update(outcomes)
        terminalreporter.write_line(_line(kind, outcomes))
    past = sum(number for name, number in total.items() if not name.startswith("form "))
    terminalreporter.write_line(f"{_line('all', total)}; {past / total.total():.0%} got past the parsing of their form")


def _line(kind: str, outcomes: dict[str, int]) -> str:
    return f"{kind:26} {sum(outcomes.values()):5}: " + ", ".join(f"{name} {number}" for name, number in sorted(outcomes.items()))
