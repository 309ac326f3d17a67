"""The calls that ahead-of-time compilation makes: every launcher with each of its tiles, at the sizes of arXiv 2110.03252."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from engine_kernels.gpu_ops import Int8, Matrix, Norm, Sequences
from engine_kernels.ops import AttentionTables, Visibility
from engine_kernels.triton_ops.attention import attend_constants, attend_ring, attend_rows
from engine_kernels.triton_ops.bidirectional import attend_bidirectional
from engine_kernels.triton_ops.launch import Launcher
from engine_kernels.triton_ops.projections import normalise, project, project_heads, write_rings
from engine_kernels.triton_ops.vocabulary import score_words

HIDDEN, HEAD_DIM, PERSISTENT, REACH = 512, 64, 2048, 193
WORDS = 20_000
VISIBILITY = Visibility(REACH, 0, REACH, 0, True)


def matrix(*shape: int, dtype: torch.dtype, int8: bool, by_column: bool = False) -> Matrix:
    """[.., rows, depth] in dtype, or in int8."""
    if not int8:
        return torch.empty(shape, dtype=dtype)
    return Int8(torch.empty(shape, dtype=torch.int8), torch.empty(*shape[:-2], shape[-1 if by_column else -2]), dtype)


def attention(launch: Launcher, heads: int, dtype: torch.dtype, rows: int, *, shared: bool = False, int8: bool = False) -> None:
    """Prefill and decode of `rows` rows: distances and biases of their own, or a table for all heads and spans."""
    empty, constant = partial(torch.empty, dtype=dtype), partial(matrix, dtype=dtype, int8=int8)
    biases = None if shared else torch.empty(heads, HEAD_DIM)
    tables = AttentionTables(
        distances=constant(1 if shared else heads, REACH, HEAD_DIM),
        content_bias=biases,
        position_bias=biases,
        persistent_keys=constant(heads, PERSISTENT, HEAD_DIM),
        persistent_values=constant(heads, PERSISTENT, HEAD_DIM, by_column=True),
        spans=torch.empty(heads) if shared else None,
        span_ramp=32 if shared else 0,
    )
    query, rings = empty(rows, heads, HEAD_DIM), (empty(4, heads, REACH, HEAD_DIM), empty(4, heads, REACH, HEAD_DIM))
    each = torch.zeros(1, dtype=torch.int64)
    sequences = Sequences(each, each, each, each, each)
    constants = attend_constants(launch, query, tables, VISIBILITY)
    if int8:  # the rest is as without it
        return
    attend_rows(launch, query, rings, (query, query), constants, sequences, np.array([rows]), tables, VISIBILITY, query)
    attend_ring(launch, query, rings, constants, sequences, tables, VISIBILITY, query)


def one_row(launch: Launcher, heads: int, dtype: torch.dtype, reach: int, *, relative: bool) -> None:
    """Decode with distances alone or persistent vectors alone; of 512 keys and more the window is cut into parts."""
    empty = partial(torch.empty, dtype=dtype)
    tables = AttentionTables(
        distances=empty(heads, reach, HEAD_DIM) if relative else None,
        content_bias=None,
        position_bias=None,
        persistent_keys=None if relative else empty(heads, PERSISTENT, HEAD_DIM),
        persistent_values=None if relative else empty(heads, PERSISTENT, HEAD_DIM),
        spans=None,
        span_ramp=0,
    )
    visibility, query, rings = Visibility(reach, 0, reach, 0, True), empty(1, heads, HEAD_DIM), empty(2, 4, heads, reach, HEAD_DIM)
    each = torch.zeros(1, dtype=torch.int64)
    constants = attend_constants(launch, query, tables, visibility)
    attend_ring(launch, query, (rings[0], rings[1]), constants, Sequences(each, each, each, each, each), tables, visibility, query)


def layer(launch: Launcher, heads: int, dtype: torch.dtype, rows: int, *, int8: bool = False) -> None:
    """What stands around attention: norm and heads, keys and values into rings, the output projection; a feed-forward and a norm."""
    empty, weight = partial(torch.empty, dtype=dtype), partial(matrix, dtype=dtype, int8=int8)
    hidden, each = torch.empty(rows, HIDDEN), torch.zeros(rows, dtype=torch.int64)
    norm = Norm(torch.empty(HIDDEN), torch.empty(HIDDEN), 1e-5)
    rings = empty(4, heads, REACH, HEAD_DIM), empty(4, heads, REACH, HEAD_DIM)
    query = project_heads(launch, hidden, weight(3, heads, HEAD_DIM, HIDDEN), None, norm, rings, each, each)
    project(launch, query.flatten(1), weight(HIDDEN, heads * HEAD_DIM), empty(HIDDEN), residual=hidden)
    project(launch, hidden, weight(4 * HIDDEN, HIDDEN), empty(4 * HIDDEN), norm=norm, activation="relu", dtype=dtype)
    score_words(launch, hidden, weight(WORDS, HIDDEN), empty(WORDS), each)
    if int8:  # the rest is as without it
        return
    write_rings(launch, (query, query), rings, each, each, each)
    normalise(launch, hidden, norm)


def bidirectional(launch: Launcher, heads: int, dtype: torch.dtype, rows: int) -> None:
    """One whole sequence of `rows` rows."""
    new = torch.empty(rows, heads, 1, HEAD_DIM, dtype=dtype), torch.empty(rows, heads, 1, HEAD_DIM, dtype=dtype)
    each, query = torch.zeros(1, dtype=torch.int64), torch.empty(rows, heads, HEAD_DIM, dtype=dtype)
    attend_bidirectional(launch, query, new, Sequences(each, each, each, each, each), np.array([rows]), query)


def encoder(launch: Launcher, heads: int, dtype: torch.dtype, rows: int) -> None:
    """What stands around attention where norms come behind: heads with biases, and every activation."""
    empty = partial(torch.empty, dtype=dtype)
    hidden, each = torch.empty(rows, HIDDEN), torch.zeros(rows, dtype=torch.int64)
    new = empty(rows, heads, 1, HEAD_DIM), empty(rows, heads, 1, HEAD_DIM)
    project_heads(launch, hidden, empty(3, heads, HEAD_DIM, HIDDEN), empty(3, heads, HEAD_DIM), None, new, each, each)
    for activation in ("gelu", "gelu_tanh", "quick_gelu", "silu"):
        project(launch, hidden, empty(4 * HIDDEN, HIDDEN), empty(4 * HIDDEN), activation=activation, dtype=dtype)


CALLS: tuple[partial[None], ...] = (
    *(partial(attention, heads=3, dtype=torch.bfloat16, rows=rows, shared=shared) for rows in (1, 64, 600) for shared in (False, True)),
    *(partial(attention, heads=3, dtype=torch.float32, rows=rows) for rows in (1, 600)),
    *(partial(layer, heads=3, dtype=torch.bfloat16, rows=rows) for rows in (1, 64, 600)),
    *(partial(layer, heads=3, dtype=torch.float32, rows=rows) for rows in (1, 600)),
    partial(one_row, heads=3, dtype=torch.bfloat16, reach=2048, relative=True),
    partial(one_row, heads=3, dtype=torch.bfloat16, reach=REACH, relative=False),
    *(partial(call, heads=3, dtype=torch.bfloat16, rows=rows, int8=True) for call in (attention, layer) for rows in (1, 600)),
    *(partial(bidirectional, heads=3, dtype=torch.bfloat16, rows=rows) for rows in (1, 64, 600)),
    *(partial(bidirectional, heads=3, dtype=torch.float32, rows=rows) for rows in (1, 600)),
    partial(encoder, heads=3, dtype=torch.bfloat16, rows=64),
)


def everything(launch: Launcher, heads: int) -> None:
    """Each launcher with each of its tiles and this many heads, for the count of compilations."""
    for rows in (1, 64, 600):
        attention(launch, heads, torch.bfloat16, rows)
        layer(launch, heads, torch.bfloat16, rows)
        bidirectional(launch, heads, torch.bfloat16, rows)
    one_row(launch, heads, torch.bfloat16, 2048, relative=True)
