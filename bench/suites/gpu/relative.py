"""The relative term of prefill by each way to form it, alone: from queries and rows by distance to a number for every visible pair."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from bench.suites.gpu.attention import Case, by_distance, draw
from bench.suites.gpu.figures import Run, host

Way = Callable[[Case, torch.dtype], torch.Tensor]


def measure(run: Run) -> None:
    """Each way at the first head count; what it costs inside our kernels is a difference that section `attention` has."""
    for rows in run.sizes.rows:
        run.attempt(f"relative term, {rows} rows", partial(_case, run, run.sizes.heads[0], rows))


def _case(run: Run, heads: int, rows: int) -> None:
    """The gate sees the first, the middle and the last sequence: PyTorch computes all alike."""
    case, label = draw(run, heads, rows), f"{heads} heads, {rows} rows"
    chosen = sorted({0, len(case.query) // 2, len(case.query) - 1})
    plain, exact = (host(gathered(case.some(chosen), dtype)) for dtype in (run.torch_dtype, torch.float64))
    for name, way in WAYS.items():
        gate = run.gate(f"relative term, {name}, {label}", host(way(case, run.torch_dtype)[chosen]), plain, exact)
        if gate is not None:
            run.add("relative", f"{name}, {label}", **run.clock.both(partial(way, case, run.torch_dtype)), gate=gate)


def gathered(case: Case, dtype: torch.dtype) -> torch.Tensor:
    """[B, H, T, W + T], the keys in order: the product by distance, gathered; 0 where a row does not see a key."""
    scores, visibility = by_distance(case, dtype), case.visibility
    rows = scores.shape[2]
    place = (
        torch.arange(visibility.reach + rows, device=scores.device)
        - torch.arange(rows, device=scores.device)[:, None]
        - 1
        + visibility.first_distance
    )
    found = scores.gather(3, place.clamp(0, visibility.reach - 1).expand(*scores.shape[:3], -1))
    return found.masked_fill((place < 0) | (place >= visibility.reach), 0.0)


def shifted(case: Case, dtype: torch.dtype) -> torch.Tensor:
    """The same by Transformer-XL's shift: zeros to the right, then rows of one number less (arXiv 1901.02860, appendix B)."""
    scores, visibility = by_distance(case, dtype), case.visibility
    rows, keys = scores.shape[2], visibility.reach + scores.shape[2]
    left = 1 - visibility.first_distance
    wide = F.pad(scores, (left, keys - visibility.reach - left + 1))  # [B, H, T, keys + 1]
    return wide.flatten(2)[:, :, : rows * keys].unflatten(2, (rows, keys))


WAYS: dict[str, Way] = {"torch: product, gather": gathered, "torch: product, pad and shift": shifted}
