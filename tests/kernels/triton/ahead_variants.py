"""`python -m tests.kernels.triton.ahead_variants TARGET` compiles what the tests start: odd head sizes, every mask, each dtype.

The tests' own cases with a launcher that compiles: an error where something does not compile or has no room on the target, a line for what
spills, as tiles chosen for models may at these sizes. By hand, before a first run on a GPU: about ten minutes of one core.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from engine_kernels.gpu_ops import Norm, Sequences
from engine_kernels.triton_ops.bidirectional import attend_bidirectional
from engine_kernels.triton_ops.launch import Launcher
from engine_kernels.triton_ops.ops import TritonOps
from engine_kernels.triton_ops.projections import normalise, project, project_heads, write_rings
from engine_kernels.triton_ops.vocabulary import score_words
from tests.kernels.triton.ahead import Compiler, report
from tests.kernels.triton.test_ahead import SHARED_LIMIT
from tests.kernels.triton.test_attention import VARIANTS
from tests.support.attention_cases import DTYPES, Case, draw, one_row

HEAD_DIMS = (4, 5, 7, 8, 12, 24, 32, 64, 80, 96, 128)
DEPTHS = (7, 18, 24, 72, 513)
ROWS = (1, 65, 600)
ACTIVATIONS = (None, "relu", "gelu", "gelu_tanh", "quick_gelu", "silu")


def calls(launch: Launcher) -> Iterator[str]:
    """Start everything, saying after each part what it was."""
    for dtype, kind in DTYPES.items():
        for name, case in VARIANTS.items():
            case = replace(case, dtype=dtype)
            attend(launch, case)
            yield f"{name}, {dtype}"
        for head_dim in HEAD_DIMS:
            for rows in ROWS:
                case = replace(VARIANTS["relative"], head_dim=head_dim, rows=rows, batch=1, heads=1, dtype=dtype)
                attend(launch, case)
                bidirectional(launch, rows, head_dim, kind)
            yield f"heads of {head_dim}, {dtype}"
        for depth in DEPTHS:
            for rows in ROWS:
                layer(launch, rows, depth, kind)
            yield f"{depth} numbers, {dtype}"


def attend(launch: Launcher, case: Case) -> None:
    """Many rows, then the last of them against its ring."""
    inputs, ops = draw(case), TritonOps(launch)
    ops.attend(inputs.query, inputs.keys, inputs.values, inputs.positions, inputs.tables, case.visibility)
    single, inputs = one_row(case, inputs)
    keys, values = (rows[:, :, -single.visibility.reach :].contiguous() for rows in (inputs.keys, inputs.values))
    ops.attend_cached(inputs.query[:, :, 0], keys, values, inputs.positions, inputs.tables, single.visibility)


def bidirectional(launch: Launcher, rows: int, head_dim: int, kind: torch.dtype) -> None:
    query, each = torch.empty(rows, 3, head_dim, dtype=kind), torch.zeros(1, dtype=torch.int64)
    attend_bidirectional(
        launch, query, (query[:, :, None], query[:, :, None]), Sequences(each, each, each, each, each), np.array([rows]), query
    )


def layer(launch: Launcher, rows: int, depth: int, kind: torch.dtype) -> None:
    """Rows of `depth` numbers through what stands around attention."""
    x, norm, each = torch.empty(rows, depth), Norm(torch.empty(depth), torch.empty(depth), 1e-5), torch.zeros(rows, dtype=torch.int64)
    rings = torch.empty(rows, 3, 5, 7, dtype=kind), torch.empty(rows, 3, 5, 7, dtype=kind)
    weight, bias = torch.empty(3, 3, 7, depth, dtype=kind), torch.empty(3, 3, 7, dtype=kind)
    project_heads(launch, x, weight, bias, norm, rings, each, each)
    query = project_heads(launch, x, weight, None, None, rings, each, each)
    write_rings(launch, (query[:, :, None], query[:, :, None]), rings, each, each, each)
    normalise(launch, x, norm)
    square, column = torch.empty(depth, depth, dtype=kind), torch.empty(depth, dtype=kind)
    for activation in ACTIVATIONS:
        project(launch, x, square, column, norm=norm, activation=activation, dtype=kind)
    project(launch, x, square, residual=x)
    score_words(launch, x, square, column, each)
    score_words(launch, x, square, None, each)


def main(target: str) -> None:
    launch, too_large, spills = Compiler(target), [], 0
    for part in calls(launch):
        print(f"{part}: {len(launch.found)} compilations so far", file=sys.stderr, flush=True)
    for row in report(launch.found):
        if row.spills:
            spills += 1
            print(f"{row.name}: {row.spills} bytes spilled")
        if row.shared > SHARED_LIMIT[target]:
            too_large.append(f"{row.name}: {row.shared} bytes of shared memory")
    print(f"{len(launch.found)} compilations for {target}, {spills} of them spill")
    if too_large:
        sys.exit("\n".join(too_large))


if __name__ == "__main__":
    main(sys.argv[1])
