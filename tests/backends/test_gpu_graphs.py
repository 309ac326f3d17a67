"""Buffers, buckets and recordings of decode steps, with work of plain PyTorch on the CPU."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from engine.backends.gpu.graphs import DecodeSteps, Launches, Surroundings
from engine.backends.gpu.recording import cuda_graph, directly, recording
from engine.errors import EngineError
from tests.support.recordings import in_place, once

CPU, SPARE = torch.device("cpu"), 7
RECORDS = [directly, in_place]


def steps_of(work: Any, record: Any = directly, *, indices: int = 0, hidden: int = 3) -> tuple[DecodeSteps, Launches]:
    launches = Launches(Counter())
    return DecodeSteps(work, Surroundings(record, launches, SPARE, CPU), hidden=hidden, indices=indices), launches


@pytest.mark.parametrize("record", RECORDS)
def test_a_step_sees_its_rows_and_the_spare_slot_behind_them(record: Any) -> None:
    seen = []

    def work(inputs: torch.Tensor, rows: Any) -> tuple[torch.Tensor, ...]:
        assert all(row.data_ptr() % 16 == 0 for row in (rows.slots, rows.positions, *inputs))
        seen.append((inputs.tolist(), rows.slots.tolist(), rows.positions.tolist()))
        return (10 * inputs[0] + rows.slots,)

    steps, _ = steps_of(work, record, indices=2)
    for rows in (3, 1, 2, 3):
        slots, positions, ids = np.arange(rows) + 1, np.arange(rows) + 40, np.arange(rows) + 5
        (result,) = steps(np.stack([ids, ids + 100]), slots, positions)
        assert result.tolist() == (10 * ids + slots).tolist()
        padding = [0] if rows == 3 else []
        spare = [SPARE] * len(padding)
        indices = [[*ids.tolist(), *padding], [*(ids + 100).tolist(), *padding]]
        assert seen[-1] == (indices, slots.tolist() + spare, positions.tolist() + padding)
    assert {tuple(slots) for _, slots, _ in seen} == {(1, 2, 3, SPARE), (1,), (1, 2)} | (
        set() if record is directly else {(SPARE,) * size for size in (1, 2, 4)}
    )


def test_hidden_rows_are_taken_where_nothing_is_looked_up() -> None:
    steps, _ = steps_of(lambda hidden, rows: (hidden + rows.positions[:, None],))
    hidden = torch.arange(9.0).reshape(3, 3)
    (result,) = steps(hidden, np.arange(3), np.array([0, 10, 20]))
    assert torch.equal(result, hidden + torch.tensor([[0], [10], [20]]))


@pytest.mark.parametrize("record", [directly, in_place, once])
def test_launches_are_counted_by_step_however_steps_are_recorded(record: Any) -> None:
    """Steps of two buckets in turn, whose work starts different kernels, some of them outside the layers."""

    def work(hidden: torch.Tensor, rows: Any) -> tuple[torch.Tensor, ...]:
        with launches.layers():
            launches.calls["layer"] += 2 if len(hidden) == 1 else 5
        launches.calls["norm"] += 1
        return (hidden,)

    steps, launches = steps_of(work, record)
    launches.calls["before"] = 4
    in_all = Counter(before=4)
    for rows, of_layers in ((1, 2), (3, 5), (1, 2), (1, 2), (4, 5), (1, 2)):
        steps(torch.zeros((rows, 3)), np.arange(rows), np.zeros(rows, np.int64))
        in_all.update(layer=of_layers, norm=1)
        assert launches.calls == in_all and launches.of_layers == of_layers
    steps.forget()
    steps(torch.zeros((1, 3)), np.arange(1), np.zeros(1, np.int64))
    assert launches.calls == in_all + Counter(layer=2, norm=1)


def test_what_was_recorded_is_dropped_when_the_rings_move() -> None:
    rings = [torch.tensor([1.0])]

    def record(work: Any) -> Any:
        recorded = rings[0]  # a graph reads the addresses it was recorded with
        return lambda: (recorded.clone(),)

    steps, _ = steps_of(lambda hidden, rows: (hidden,), record)
    one = torch.zeros((1, 3)), np.arange(1), np.zeros(1, np.int64)
    assert steps(*one)[0].item() == 1
    rings[0] = torch.tensor([2.0])
    assert steps(*one)[0].item() == 1
    steps.forget()
    assert steps(*one)[0].item() == 2


def test_graphs_are_recorded_on_gpus_unless_the_variable_says_no(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 1)
    monkeypatch.delenv("HEADCOUNT_GPU_GRAPHS", raising=False)
    assert recording(gpu) is cuda_graph and recording(CPU) is directly
    monkeypatch.setenv("HEADCOUNT_GPU_GRAPHS", "1")
    assert recording(gpu) is cuda_graph and recording(CPU) is directly
    monkeypatch.setenv("HEADCOUNT_GPU_GRAPHS", "0")
    assert recording(gpu) is directly
    for wrong in ("", "no", "2"):
        monkeypatch.setenv("HEADCOUNT_GPU_GRAPHS", wrong)
        for device in (gpu, CPU):
            with pytest.raises(EngineError, match=f"HEADCOUNT_GPU_GRAPHS: expected 0 or 1, found '{wrong}'"):
                recording(device)


def test_a_graph_is_recorded_on_a_stream_of_the_current_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's calls replaced by notes: one run aside, then the recording on the same stream, which PyTorch's default need not be."""
    notes: list[Any] = []

    class Stream:
        def wait_stream(self, other: Any) -> None:
            notes.append("wait")

    class Graph:
        def replay(self) -> None:
            notes.append("replay")

    @contextmanager
    def within(*arguments: Any, **named: Any) -> Any:
        notes.append((arguments[-1], named.get("stream"), named.get("capture_error_mode")))
        yield

    main, graph = Stream(), Graph()
    for name, stand_in in {"current_stream": lambda: main, "CUDAGraph": lambda: graph, "stream": within, "graph": within}.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    results = torch.ones(1), torch.ones(2)

    def work() -> Any:
        notes.append("work")
        return results

    replay = cuda_graph(work)
    aside = notes[1][0]
    assert isinstance(aside, Stream) and aside is not main
    assert notes == ["wait", (aside, None, None), "work", "wait", (graph, aside, "thread_local"), "work"]
    assert replay() is results and notes[6:] == ["replay"]
