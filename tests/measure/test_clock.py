"""Turns, pairs and percentiles; nothing here depends on how fast the machine is."""

from __future__ import annotations

import pytest

from engine.measure.clock import interleaved, paired_ratio, percentiles


def test_engines_take_turns_and_the_warm_up_is_not_kept() -> None:
    order: list[str] = []
    work = {name: (lambda name=name: order.append(name)) for name in "abc"}
    steps: list[int] = []
    samples = interleaved(work, rounds=3, warmup=2, advance=lambda: steps.append(1))
    assert "".join(order) == "abc" * 5
    assert {name: len(seconds) for name, seconds in samples.items()} == {"a": 3, "b": 3, "c": 3}
    assert len(steps) == 15


def test_collection_is_on_again_after_a_failure() -> None:
    import gc

    def fail() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        interleaved({"a": fail}, rounds=1, warmup=0, advance=lambda: None)
    assert gc.isenabled()


def test_percentiles_lie_between_samples() -> None:
    found = percentiles([3.0, 1.0, 2.0, 5.0, 4.0])
    assert found == pytest.approx({"10": 1.4, "25": 2.0, "50": 3.0, "75": 4.0, "90": 4.6, "99": 4.96})


def test_ratios_are_of_the_same_round() -> None:
    assert paired_ratio([2.0, 20.0, 8.0], [1.0, 10.0, 2.0]) == 2.0
