"""attend of the CUDA kernels against the float64 oracle: many rows at once, then the last of them alone against its ring."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from engine_kernels.cuda_ops import CudaKernels
from engine_kernels.gpu_ops import Sequences
from tests.support.attention_cases import DEVICE, Case, Inputs, check, draw, one_row, ring

VARIANTS = {
    "relative": Case(),
    "one row": Case(rows=1, persistent=1),
    "several tiles": Case(batch=1, heads=1, rows=65, window=33, persistent=130),
    "empty start": Case(attended_zeros=False, positions=(0, 3), rows=9),
    "segments from nothing": Case(segment=3, rows=17, attended_zeros=False, positions=(0, 1)),
    "without itself": Case(first_distance=1, rows=17, relative="shared"),
    "spans and segments, nothing constant": Case(spans=True, segment=7, persistent=0, rows=17),
    "no distances": Case(relative="none", rows=17),
    "only keys, heads of 24": Case(relative="none", persistent=0, heads=1, head_dim=24),
    "heads of 64": Case(heads=2, head_dim=64, rows=3, persistent=70),
    "heads of 64, several tiles": Case(heads=1, head_dim=64, batch=1, rows=131, window=70, persistent=130),
    "heads of 128": Case(heads=1, head_dim=128, rows=3, batch=1),
    "far into a stream": Case(positions=(2**33 + 5, 1_000_003), segment=7),
}


def synchronise() -> None:
    """What kernels made of a GPU's tables, tiles and places is there: docs/kernels.md, "What is read early"."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def attend(case: Case, inputs: Inputs, by_ring: bool, run: CudaKernels | None = None) -> torch.Tensor:
    """[B, H, T, D]: of rows that bring their keys along, or of single rows whose rings hold them."""
    batch, heads, rows, head_dim = inputs.query.shape
    packed = inputs.query.transpose(1, 2).reshape(batch * rows, heads, head_dim).contiguous()
    order = torch.arange(batch, device=DEVICE)
    sequences = Sequences(order * rows, torch.full_like(order, rows), order, torch.zeros_like(order), inputs.positions)
    run, lengths = run or CudaKernels(torch.device(DEVICE)), np.full(batch, rows)
    reach = case.visibility.reach
    if by_ring:
        keys, values = (
            ring(case, each[:, :, 1 - case.first_distance :][:, :, :reach], inputs.positions) for each in (inputs.keys, inputs.values)
        )
        synchronise()
        out = run.attend(packed, (keys, values), None, sequences, None, lengths[:0], inputs.tables, case.visibility)
    else:
        past = inputs.keys[:, :, :reach].contiguous(), inputs.values[:, :, :reach].contiguous()
        new = [each[:, :, reach:].transpose(1, 2).reshape(batch * rows, heads, 1, head_dim) for each in (inputs.keys, inputs.values)]
        new = [each.contiguous() for each in new]
        synchronise()
        out = run.attend(packed, past, (new[0], new[1]), None, sequences, lengths, inputs.tables, case.visibility)
    return out.reshape(batch, rows, heads, head_dim).transpose(1, 2)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", VARIANTS)
def test_keeps_to_the_oracle(name: str, dtype: str, order: None) -> None:
    case = replace(VARIANTS[name], dtype=dtype)
    inputs = draw(case)
    check(case, attend(case, inputs, by_ring=False), inputs, "several rows")
    case, inputs = one_row(case, inputs)
    check(case, attend(case, inputs, by_ring=True), inputs, "one row against its ring")


@pytest.mark.parametrize("heads", [1, 2, 7])
def test_any_number_of_heads(heads: int) -> None:
    case = Case(heads=heads, batch=1, rows=3, dtype="float16")
    inputs = draw(case)
    check(case, attend(case, inputs, by_ring=False), inputs, f"{heads} heads")


def test_heads_of_64_take_one_kernel_where_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADCOUNT_HOPPER_ATTEND", raising=False)
    case = Case(heads=1, batch=1, rows=2, head_dim=64, dtype="bfloat16")
    run = CudaKernels(torch.device(DEVICE))
    attend(case, draw(case), by_ring=False, run=run)
    fits = run.module.hopper_fits(64, 1, 1)
    assert set(run.calls) == ({"hopper_attend"} if fits else {"attend_constants", "attend_rows"})
    assert not run.module.hopper_fits(128, 1, 1000)
