"""hopper_attend, taken however few tiles there are, against the float64 oracle; and the same bits every time.

Sequences of several lengths in one launch, most as in kernels/csrc/tests/cuda_hopper_test.cc, on a GPU or an emulated one.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from engine_kernels.cuda_ops import CudaKernels
from engine_kernels.errors import KernelError
from engine_kernels.gpu_ops import Sequences
from tests.kernels.cuda.conftest import EMULATED
from tests.kernels.cuda.test_attention import VARIANTS, attend, synchronise
from tests.support.attention_cases import DEVICE, Case, Inputs, check, draw, seen

PROCESSORS_OF_AN_H200 = 132


@dataclass(frozen=True)
class Several:
    """Sequences of one launch, (rows, position of the first) each; case: what they share; tables: what differs from those drawn."""

    case: Case
    sequences: tuple[tuple[int, int], ...]
    size: int = 1  # of keys and distances
    tables: Mapping[str, Any] = field(default_factory=dict)


# Heads of 64, rings of three slots more than are seen.
COMMON = Case(batch=1, heads=1, head_dim=64, attended_zeros=False, capacity=3)
SPANS = replace(COMMON, heads=3, persistent=20, window=90, first_distance=1, relative="shared", spans=True, capacity=4)
ZEROS = replace(COMMON, persistent=9, window=30, segment=50, attended_zeros=True)
# Steps of 128 persistent vectors and 64 keys on six stages.
CASES = {
    "persistent only": Several(replace(COMMON, persistent=300, first_distance=1), ((1, 0), (1, 0), (1, 0))),
    "context only": Several(replace(COMMON, persistent=0, window=100), ((130, 50),)),
    "both": Several(replace(COMMON, persistent=300, window=100), ((130, 50),)),
    "round the stages twice": Several(replace(COMMON, heads=2, persistent=700, window=200), ((1, 3), (130, 500), (65, 0))),
    "whole steps, no spare slot": Several(replace(COMMON, persistent=256, window=64, capacity=0), ((64, 640), (128, 64), (1, 63))),
    "no persistent vectors": Several(replace(COMMON, persistent=0, window=70), ((3, 9), (66, 31))),
    "previous tokens, spans": Several(SPANS, ((70, 2), (2, 400), (3, 0)), tables={"span_ramp": 40}),
    "segments of zeros": Several(ZEROS, ((75, 0), (9, 4), (140, 33))),
    "segments": Several(replace(COMMON, persistent=0, window=67, segment=70), ((171, 5), (6, 99))),
    "nothing relative": Several(replace(COMMON, heads=2, persistent=129, window=300), ((200, 700), (33, 50)), tables={"distances": None}),
    "peaks far apart": Several(replace(COMMON, persistent=40, window=150), ((135, 200),), size=6),
    "a window shorter than a step": Several(replace(COMMON, persistent=1, window=3), ((129, 64), (5, 1))),
}


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """On a GPU that runs it, or an emulated one as large as an H200."""
    monkeypatch.setenv("HEADCOUNT_HOPPER_ATTEND", "always")
    module: Any = importlib.import_module("engine_kernels._cuda_emulated" if EMULATED else "engine_kernels._cuda")
    if not module.hopper_runs(64):
        pytest.skip("this GPU is not sm_90, the only kind hopper_attend is for")
    if not EMULATED:
        yield
        return
    module.set_multiprocessors(PROCESSORS_OF_AN_H200)
    yield
    module.set_multiprocessors(2)


def kernels() -> CudaKernels:
    return CudaKernels(torch.device(DEVICE))


def times(module: Any) -> Iterator[int]:
    """50 on a GPU; two on an emulated one, each in its own order of threads."""
    if not EMULATED:
        yield from range(50)
        return
    try:
        for order in (0, 5):
            module.set_order(order)
            yield order
    finally:
        module.set_order(0)


def draw_several(several: Several, dtype: str) -> list[tuple[Case, Inputs]]:
    """Case and inputs of each sequence, all with the same tables."""
    parts: list[tuple[Case, Inputs]] = []
    for number, (rows, position) in enumerate(several.sequences):
        case = replace(several.case, rows=rows, positions=(position,), dtype=dtype)
        inputs = draw(case, seed=number)
        if parts:
            tables = parts[0][1].tables
        else:
            tables = replace(inputs.tables, **several.tables)
            if tables.distances is not None:
                tables = replace(tables, distances=tables.distances * several.size)
        parts.append((case, replace(inputs, keys=inputs.keys * several.size, tables=tables)))
    return parts


def hidden_by_nan(case: Case, inputs: Inputs, numbers: torch.Tensor) -> torch.Tensor:
    """Keys or values [1, H, reach + T, D] with NaN wherever no row sees them."""
    reach, position = case.visibility.reach, int(inputs.positions[0])
    there = sorted({reach + t - distance for t in range(case.rows) for distance in seen(case.visibility, position + t)})
    kept = torch.full_like(numbers, torch.nan)
    kept[:, :, there] = numbers[:, :, there]
    return kept


def launch(run: CudaKernels, parts: list[tuple[Case, Inputs]], chosen: list[int]) -> Callable[[], torch.Tensor]:
    """attend of the chosen sequences, to be called many times: [rows of all, H, D]."""
    case, reach = parts[0][0], parts[0][0].visibility.reach
    rows = np.array([part.rows for part, _ in parts])
    query = torch.cat([inputs.query[0].transpose(0, 1) for _, inputs in parts]).contiguous()  # [rows, H, D]
    shape = (len(parts) + 1, case.heads, reach + case.capacity, case.head_dim)  # the last ring is no sequence's
    rings, fresh = [], []
    for name in ("keys", "values"):
        ring, new = torch.full(shape, torch.nan, dtype=query.dtype, device=DEVICE), []
        for number, (part, inputs) in enumerate(parts):
            numbers = hidden_by_nan(part, inputs, getattr(inputs, name))[0]  # [H, reach + T, D]
            places = (int(inputs.positions[0]) + np.arange(-reach, 0)) % shape[2]
            ring[len(parts) - 1 - number][:, places] = numbers[:, :reach]
            new.append(numbers[:, reach:].transpose(0, 1)[:, :, None])  # [T, H, 1, D]
        rings.append(ring)
        fresh.append(torch.cat(new).contiguous())
    positions = np.array([int(inputs.positions[0]) for _, inputs in parts])
    places_of = (np.cumsum(rows) - rows, rows, len(parts) - 1 - np.arange(len(parts)), positions, positions)
    sequences = Sequences(*(torch.from_numpy(numbers[chosen]).to(DEVICE) for numbers in places_of))
    lengths, tables, visibility = rows[chosen], parts[0][1].tables, case.visibility
    synchronise()
    return lambda: run.attend(query, (rings[0], rings[1]), (fresh[0], fresh[1]), None, sequences, lengths, tables, visibility)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", CASES)
def test_keeps_to_the_oracle_and_to_its_bits(name: str, dtype: str) -> None:
    """bfloat16 without the sequences of one row where there are others, whose rows must then not be written."""
    parts = draw_several(CASES[name], dtype)
    lengths = [case.rows for case, _ in parts]
    chosen = [n for n, rows in enumerate(lengths) if dtype == "float16" or rows > 1 or max(lengths) == 1]
    run = kernels()
    attended, bits, calls = launch(run, parts, chosen), None, 0
    for _ in times(run.module):
        out = attended()
        calls += 1
        bits = out if bits is None else bits
        assert torch.equal(out.view(torch.int16), bits.view(torch.int16)), f"call {calls} has other bits than the first"
    assert bits is not None and run.calls == {"hopper_attend": calls}
    for number, ((case, inputs), rows) in enumerate(zip(parts, bits.split(lengths), strict=True)):
        if number in chosen:
            check(case, rows.transpose(0, 1)[None], inputs, f"sequence {number}")
        else:
            assert bool(torch.isnan(rows).all()), f"rows of sequence {number}, which is not attended, were written"


HEADS_OF_64 = [name for name, case in VARIANTS.items() if case.head_dim == 64]


@pytest.mark.parametrize("name", HEADS_OF_64)
def test_heads_of_64_take_it_however_few_tiles(name: str) -> None:
    case, run = replace(VARIANTS[name], dtype="float16"), kernels()
    inputs = draw(case)
    check(case, attend(case, inputs, by_ring=False, run=run), inputs, name)
    assert run.calls == {"hopper_attend": 1}


@pytest.mark.parametrize("name", HEADS_OF_64)
@pytest.mark.parametrize("word", [None, "never"])
def test_else_few_tiles_do_not(name: str, word: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADCOUNT_HOPPER_ATTEND")
    if word is not None:
        monkeypatch.setenv("HEADCOUNT_HOPPER_ATTEND", word)
    case, run = replace(VARIANTS[name], dtype="float16"), kernels()
    attend(case, draw(case), by_ring=False, run=run)
    assert run.calls == {"attend_constants": 1, "attend_rows": 1}


def test_where_it_pays_is_not_where_it_is_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many tiles of one row as pay, without the variable and with `never`."""
    case = replace(COMMON, batch=40, heads=2, rows=2, persistent=3, window=2)
    for word, taken in ((None, {"hopper_attend": 1}), ("never", {"attend_constants": 1, "attend_rows": 1})):
        monkeypatch.delenv("HEADCOUNT_HOPPER_ATTEND", raising=False)
        if word is not None:
            monkeypatch.setenv("HEADCOUNT_HOPPER_ATTEND", word)
        run = kernels()
        attend(replace(case, dtype="float16"), draw(replace(case, dtype="float16")), by_ring=False, run=run)
        assert run.calls == taken


def test_heads_of_other_sizes_never_take_it() -> None:
    case, run = Case(heads=1, batch=1, head_dim=32, dtype="float16"), kernels()
    attend(case, draw(case), by_ring=False, run=run)
    assert "hopper_attend" not in run.calls


@pytest.mark.parametrize("word", ["Always", "1", ""])
def test_another_word_is_an_error_that_names_those_it_takes(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADCOUNT_HOPPER_ATTEND", word)
    with pytest.raises(KernelError, match=f"HEADCOUNT_HOPPER_ATTEND: expected always or never, or not to be set, got '{word}'"):
        kernels()
