"""Grids of a whole GPU without one: the published head lists planned and validated for each, and a token on the largest, emulated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from bench.core.cases import S1
from engine.errors import EngineError
from engine_kernels import cuda_decode
from engine_kernels.cuda_decode import DecodeShape
from engine_kernels.errors import KernelError
from engine_kernels.ops import Visibility
from engine_kernels.shapes import by_name
from engine_kernels.testing import difference
from tests.backends.test_oracle_properties import Case
from tests.kernels.cuda.test_decode import cuda_runner, wide
from tests.kernels.cuda.test_runner import rounded
from tests.support import engine_side

WIDTH = S1.window - 1  # keys of the context that a row sees: itself is among the window's
HEADS = {
    **{str(sum(counts)): counts for counts in (*S1.pruned, (S1.heads,) * S1.layers)},
    "layers without heads": (0, 3, 0, 0, 8, 1, 0),
    "more heads than clusters": (64, 0, 33, 17),
}
# All that 132 multiprocessors may place, by the size of a cluster.
PLACED = [*((count, 8) for count in range(12, 17)), *((count, 4) for count in range(24, 34))]


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The emulated module, also where there is a GPU: its clusters are what a test says."""
    module = pytest.importorskip("engine_kernels._cuda_emulated", reason="the module _cuda_emulated is not built")
    monkeypatch.setenv("HEADCOUNT_CUDA_EMULATED", "1")
    yield module
    module.set_clusters({2: 2})


def shape(heads: int) -> dict[str, Any]:
    """A layer of the published geometry as Decode is told of it."""
    none = DecodeShape(0, 0, 0, Visibility(0, 0, 0, 0, False), norm_first=True, norm_eps=1e-5, span_ramp=0.0)
    some = replace(none, heads=heads, persistent=S1.persistent, distance_tables=heads, visibility=Visibility(WIDTH, 0, WIDTH, 0, True))
    return by_name(some if heads else none, DecodeShape)


@pytest.mark.parametrize(("clusters", "cluster"), PLACED)
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_every_head_list_has_a_valid_plan_on_every_grid(emulated: Any, heads: tuple[int, ...], clusters: int, cluster: int) -> None:
    """For 1 to 16 rows; `schedule` validates what it returns."""
    emulated.set_clusters({cluster: clusters})
    decode = emulated.Decode(S1.hidden, S1.head_dim, [shape(count) for count in heads], [cluster])
    for rows in range(1, 17):
        assert decode.refusal(rows) == ""
        _, begins, most_jobs = decode.schedule(rows)
        assert decode.grid(rows) == (clusters, cluster) and len(begins) == clusters * cluster + 1
        assert most_jobs >= min(max(heads), clusters)


@pytest.mark.parametrize("at", ["layers[1]", "layers[1].visibility"])
def test_a_field_missing_on_one_side_is_refused_by_its_name(emulated: Any, at: str) -> None:
    """Fields that Python has and native code has not, and the other way round, in a layer and in what its rows see."""

    def told(change: Callable[[dict[str, Any]], None]) -> None:
        layers = [shape(2), shape(3)]
        change(layers[1]["visibility"] if at.endswith("visibility") else layers[1])
        emulated.Decode(S1.hidden, S1.head_dim, layers, [2])

    def refused(name: str, change: Callable[[dict[str, Any]], None]) -> str:
        with pytest.raises(KernelError) as caught:
            told(change)
        assert caught.value.argument == f"{at}.{name}"
        return str(caught.value)

    told(lambda fields: None)
    for name in shape(3)["visibility"] if at.endswith("visibility") else shape(3):
        assert "expected a value, got nothing" in refused(name, lambda fields, name=name: fields.__delitem__(name))
        refused(name, lambda fields, name=name: fields.__setitem__(name, object()))
    assert "no such field" in refused("planted", lambda fields: fields.__setitem__("planted", 3))


def test_layers_that_see_both_ways_are_refused(emulated: Any) -> None:
    layers = [shape(2), {**shape(3), "visibility": by_name(Visibility(0, 0, 0, 0, False, bidirectional=True), Visibility)}]
    assert "not bidirectional ones" in emulated.Decode(S1.hidden, S1.head_dim, layers, [2]).refusal(1)


def test_a_token_on_sixteen_clusters_of_eight_keeps_to_the_oracle(emulated: Any) -> None:
    """The grid of a GPU that places all it can, which the runner chooses by itself."""
    emulated.set_clusters({8: 16, 4: 33})
    case = Case.of(rounded(wide(10), "bfloat16"), "bfloat16")
    runner = cuda_runner(case.checkpoint, "bfloat16")
    assert runner.describe()["decode"].endswith("16 clusters of 8 blocks at one")
    rows = engine_side.step(runner, [case.ids[:1]], [runner.open()], [0]).log_probs
    assert runner.describe()["launches"]["decode_step"] == 1
    assert difference(rows, case.exact.log_probs[:1]) <= case.allowed


def test_what_is_resident_is_told_for_every_size_of_a_cluster(emulated: Any) -> None:
    emulated.set_clusters({8: 15, 4: 31, 1: 132})
    assert emulated.clusters_at_once() == {size: {8: 15, 4: 31, 1: 132}.get(size, 0) for size in range(1, 17)}


def test_a_grid_that_does_not_start_is_a_reason_and_never_an_error_of_a_step(emulated: Any) -> None:
    case = Case.of(rounded(wide(0), "float16"), "float16")
    emulated.set_clusters({4: 3, 2: 2}, blocks=4)
    assert "2 clusters of 2 blocks" in cuda_runner(case.checkpoint, "float16").describe()["decode"]
    emulated.set_clusters({4: 3}, blocks=4)
    runner = cuda_runner(case.checkpoint, "float16")
    rows = engine_side.step(runner, [case.ids[:1]], [runner.open()], [0]).log_probs
    described = runner.describe()
    assert "decode_step" not in described["launches"]
    assert described["decode"].startswith("kernels of each layer: ")
    assert "clusters of 4: 3 not started (kernel launch: more blocks than the emulated GPU starts together)" in described["decode"]
    assert difference(rows, case.exact.log_probs[:1]) <= case.allowed


def test_patience_is_read_from_the_environment(emulated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case.of(rounded(wide(0), "float16"), "float16")
    monkeypatch.setenv(cuda_decode.PATIENCE, "0.25")
    runner = cuda_runner(case.checkpoint, "float16")
    assert runner._whole is not None
    runner.check_after_replays()
    runner._whole._trouble[:] = torch.tensor([1, 3, 2, 2])
    with pytest.raises(RuntimeError, match=r"expected its weights within 0\.25 s"):
        runner.check_after_replays()
    runner.check_after_replays()  # once
    rows = engine_side.step(runner, [case.ids[:1]], [runner.open()], [0]).log_probs
    assert difference(rows, case.exact.log_probs[:1]) <= case.allowed
    for wrong in ("0", "-1", "nan", "inf", "two", ""):
        monkeypatch.setenv(cuda_decode.PATIENCE, wrong)
        with pytest.raises(EngineError, match=cuda_decode.PATIENCE):
            cuda_runner(case.checkpoint, "float16")
