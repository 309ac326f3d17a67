"""attend and attend_cached against the float64 oracle, by the launcher that also serves a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("triton", reason="Triton is not installed: pip install 'headcount[gpu]'", exc_type=ImportError)

import torch

from engine_kernels.gpu_ops import Sequences
from engine_kernels.triton_ops.attention import attend_constants, attend_ring, attend_rows
from engine_kernels.triton_ops.launch import Launcher, architecture
from engine_kernels.triton_ops.ops import TritonOps
from engine_kernels.triton_ops.tiles import window_parts
from tests.support.attention_cases import DEVICE, DTYPES, Case, Inputs, check, draw, exact, one_row, ring

VARIANTS = {
    "relative": Case(),
    "one row": Case(rows=1, persistent=1),
    "one key": Case(window=1, rows=2, heads=1),
    "several tiles": Case(batch=1, heads=2, rows=65, window=33, persistent=130),
    "whole tiles of persistent vectors": Case(persistent=64, head_dim=16, heads=1),
    "window longer than the rows": Case(window=130, rows=3, heads=1, batch=1),
    "empty start": Case(attended_zeros=False, positions=(0, 3), rows=9),
    "segments": Case(segment=5, rows=17),
    "segments from nothing": Case(segment=3, rows=17, attended_zeros=False, positions=(0, 1)),
    "without itself": Case(first_distance=1, rows=17, relative="shared"),
    "spans": Case(spans=True, rows=17, first_distance=1, relative="shared"),
    "spans and segments, nothing constant": Case(spans=True, segment=7, persistent=0, rows=17),
    "no distances": Case(relative="none", rows=17),
    "only keys": Case(relative="none", persistent=0, heads=1),
    "seven heads of 5": Case(heads=7, head_dim=5),
    "heads of 64": Case(heads=2, head_dim=64, rows=3, persistent=70),
    "a long window in two parts": Case(batch=1, heads=1, rows=1, window=530, persistent=3),
    "in four, of which an early stream has two": Case(
        rows=2, heads=1, window=1025, first_distance=1, relative="shared", spans=True, positions=(300, 5000), attended_zeros=False
    ),
    "far into a stream": Case(positions=(2**33 + 5, 1_000_003), segment=7),
}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", VARIANTS)
def test_keeps_to_the_oracle(name: str, dtype: str) -> None:
    compare(replace(VARIANTS[name], dtype=dtype))


def test_a_span_that_leaves_out_the_loudest_keys_is_renormalised_as_published() -> None:
    """With the weight all beyond the span, the 1e-8 of arXiv 1905.07799 outweighs what is left of a row."""
    case = Case(spans=True, first_distance=1, relative="shared", persistent=0, window=17, rows=17)
    inputs = draw(case)
    short = replace(inputs.tables, spans=torch.zeros(case.heads, device=DEVICE))
    inputs = replace(inputs, query=16 * inputs.query, tables=short)
    sizes = np.abs(exact(case, inputs)).max(axis=3)  # [B, H, T]
    assert (sizes < 1e-3).any() and (sizes > 0.1).any()  # rows on both sides of it
    compare(case, inputs)


@pytest.mark.parametrize("name", ["relative", "without itself", "spans and segments, nothing constant", "heads of 64"])
def test_bfloat16_keeps_to_the_oracle(name: str, bfloat16: None) -> None:
    compare(replace(VARIANTS[name], dtype="bfloat16"))


def compare(case: Case, inputs: Inputs | None = None) -> None:
    """Many rows at once, then the last of them alone against its ring."""
    inputs = inputs or draw(case)
    ops = TritonOps(launcher())
    check(case, ops.attend(inputs.query, inputs.keys, inputs.values, inputs.positions, inputs.tables, case.visibility), inputs, "attend")
    case, inputs = one_row(case, inputs)
    keys, values = (
        ring(case, rows[:, :, 1 - case.first_distance :][:, :, : case.visibility.reach], inputs.positions)
        for rows in (inputs.keys, inputs.values)
    )
    found = ops.attend_cached(inputs.query[:, :, 0], keys, values, inputs.positions, inputs.tables, case.visibility)
    check(case, found[:, :, None], inputs, "attend_cached")


@pytest.mark.skipif(DEVICE == "cuda" and torch.cuda.get_device_capability()[0] < 9, reason="this GPU has no tensor memory unit")
def test_descriptors_of_the_persistent_vectors_keep_to_the_oracle() -> None:
    """What Hopper's tensor memory unit would load, by the same call: blocks of the second head begin where the first's end."""
    case = Case(heads=2, rows=3, head_dim=16, persistent=128, dtype="float16")
    inputs, launch = draw(case), Launcher("sm_90")
    found = TritonOps(launch).attend(inputs.query, inputs.keys, inputs.values, inputs.positions, inputs.tables, case.visibility)
    assert launch.tiles.descriptors
    check(case, found, inputs, "described")


def test_many_rows_of_one_query_batch_take_fewer_splits() -> None:
    """70 rows make tiles of another size than 2 rows do; both must hold."""
    case = Case(batch=70, rows=1, heads=1, persistent=300, window=5, dtype="float16")
    inputs = draw(case)
    keys, values = (ring(case, rows[:, :, 1:], inputs.positions) for rows in (inputs.keys, inputs.values))
    ops = TritonOps(launcher())
    check(
        case,
        ops.attend_cached(inputs.query[:, :, 0], keys, values, inputs.positions, inputs.tables, case.visibility)[:, :, None],
        inputs,
        "70",
    )
    assert ops.launch.calls == {"attend_constants": 1, "attend_ring": 1}


def test_a_long_window_of_few_rows_is_cut_into_parts_and_merged() -> None:
    case = VARIANTS["a long window in two parts"]
    inputs, ops = draw(case), TritonOps(launcher())
    keys, values = (ring(case, rows[:, :, 1:], inputs.positions) for rows in (inputs.keys, inputs.values))
    ops.attend_cached(inputs.query[:, :, 0], keys, values, inputs.positions, inputs.tables, case.visibility)
    assert ops.launch.calls == {"attend_constants": 1, "attend_ring": 1, "merge_parts": 1}
    assert [window_parts(programs, 2048) for programs in (1, 4, 64, 100, 256, 2048)] == [8, 8, 4, 2, 1, 1]
    assert [window_parts(1, reach) for reach in (1, 193, 511, 512, 10**6)] == [1, 1, 1, 2, 32]


@pytest.mark.parametrize("heads", range(9))
def test_any_number_of_heads(heads: int) -> None:
    case = Case(heads=heads, batch=1, rows=3)
    inputs, ops = draw(case), TritonOps(launcher())
    found = ops.attend(inputs.query, inputs.keys, inputs.values, inputs.positions, inputs.tables, case.visibility)
    assert found.shape == (1, heads, 3, 8)
    if heads:
        check(case, found, inputs, f"{heads} heads")
    else:
        assert not ops.launch.calls  # a layer without heads starts nothing


@pytest.mark.parametrize("first", [0, 1])
def test_uneven_sequences_in_slots_of_any_order(first: int) -> None:
    """Lengths 9, 1 and 21 packed after each other, rings with spare slots that wrap, poison wherever nothing may be read or written."""
    case = Case(batch=1, first_distance=first, relative="shared", capacity=first, window=6, heads=3)
    lengths, positions, slots = (9, 1, 21), (4, 13, 7), (2, 0, 4)
    parts = [
        (replace(case, rows=rows), draw(replace(case, rows=rows, positions=(at,)), seed))
        for seed, (rows, at) in enumerate(zip(lengths, positions, strict=True))
    ]
    tables = parts[0][1].tables
    parts = [(each, replace(inputs, tables=tables)) for each, inputs in parts]
    reach, capacity = case.visibility.reach, case.visibility.reach + first
    rings = tuple(poison(5, case.heads, capacity, case.head_dim) for _ in "kv")
    for (_, inputs), slot, position in zip(parts, slots, positions, strict=True):
        for back in range(reach):
            rings[0][slot, :, (position - 1 - back) % capacity] = inputs.keys[0, :, reach - 1 - back]
            rings[1][slot, :, (position - 1 - back) % capacity] = inputs.values[0, :, reach - 1 - back]
    query = packed([inputs.query for _, inputs in parts])
    new = packed([inputs.keys[:, :, reach:] for _, inputs in parts]), packed([inputs.values[:, :, reach:] for _, inputs in parts])
    sequences = Sequences(
        tensor((0, 9, 10)), tensor(lengths), tensor(slots), tensor([at % capacity for at in positions]), tensor(positions)
    )
    out, launch = poison(31, case.heads, case.head_dim), launcher()
    constants = attend_constants(launch, query, tables, case.visibility)
    attend_rows(launch, query, (rings[0], rings[1]), new, constants, sequences, np.array(lengths), tables, case.visibility, out)
    for (each, inputs), rows in zip(parts, torch.split(out, lengths), strict=True):
        check(each, rows.transpose(0, 1)[None], inputs, "uneven")

    # The middle one alone, as a decoded row: its key goes into the ring first, its neighbours' rows stay poison.
    each, inputs = parts[1]
    for target, source in zip(rings, (inputs.keys, inputs.values), strict=True):
        target[slots[1], :, positions[1] % capacity] = source[0, :, -1]
    out = poison(31, case.heads, case.head_dim)
    only = Sequences(*(tensor([values]) for values in (9, 1, slots[1], 0, positions[1])))
    attend_ring(launch, query, (rings[0], rings[1]), constants, only, tables, case.visibility, out)
    check(each, out[9][None, :, None], inputs, "one of them decoded")
    assert torch.isnan(out[:9]).all() and torch.isnan(out[10:]).all()


@pytest.mark.parametrize("first", [0, 1])
def test_a_stream_without_a_past_loads_nothing_of_its_ring(first: int) -> None:
    """Rows see only keys of their own stream, so a ring of poison, and its place, change nothing."""
    case = Case(batch=1, rows=9, window=6, first_distance=first, attended_zeros=False, positions=(0,), heads=2)
    inputs, each = draw(case), tensor([0])
    query = packed([inputs.query])
    new = packed([inputs.keys[:, :, case.visibility.reach :]]), packed([inputs.values[:, :, case.visibility.reach :]])
    rings = tuple(poison(1, case.heads, case.visibility.reach + first, case.head_dim) for _ in "kv")
    out, launch = poison(9, case.heads, case.head_dim), launcher()
    constants = attend_constants(launch, query, inputs.tables, case.visibility)
    sequences = Sequences(each, tensor([9]), each, each, each)
    attend_rows(launch, query, (rings[0], rings[1]), new, constants, sequences, np.array([9]), inputs.tables, case.visibility, out)
    check(case, out.transpose(0, 1)[None], inputs, "no past")


def launcher() -> Launcher:
    """With a GPU's tiles also where the interpreter runs them."""
    return Launcher(architecture(torch.device(DEVICE)) if DEVICE == "cuda" else "sm_80")


def packed(parts: list[torch.Tensor]) -> torch.Tensor:
    """[1, H, T, D] of several sequences as [rows, H, D]."""
    return torch.cat([part[0].transpose(0, 1) for part in parts]).contiguous()


def tensor(values: Sequence[int]) -> torch.Tensor:
    return torch.tensor(values, device=DEVICE)


def poison(*shape: int) -> torch.Tensor:
    return torch.full(shape, torch.nan, dtype=DTYPES["float32"], device=DEVICE)
