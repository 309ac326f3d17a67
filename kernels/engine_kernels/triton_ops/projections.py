"""Launchers of the matrix products and norms of a layer; kernels in device/projections.py."""

from __future__ import annotations

import torch
import triton.language as tl

from engine_kernels.gpu_ops import Int8, Matrix, Norm, stored
from engine_kernels.triton_ops.attention import padded
from engine_kernels.triton_ops.device import projections as kernels
from engine_kernels.triton_ops.launch import Launcher
from engine_kernels.triton_ops.tiles import choose

DEPTH = {2: 64, 4: 32}  # of a block of the sum, by bytes of a number that is multiplied with
DOT = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def project(
    launch: Launcher,
    x: torch.Tensor,
    weight: Matrix,
    bias: torch.Tensor | None = None,
    *,
    norm: Norm | None = None,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """residual + activation(norm(x) · weightᵀ + bias) of x [rows, depth], weight [columns, depth]; [rows, columns] in `dtype`."""
    rows, (columns, depth) = len(x), weight.shape
    tile = choose(launch.tiles.project, rows, weight.dtype.itemsize)
    out = torch.empty((rows, columns), dtype=dtype, device=x.device)
    block = DEPTH[weight.dtype.itemsize]
    launch(
        kernels.project,
        (-(-rows // tile.rows), -(-columns // tile.keys)),
        tile,
        x,
        *_norm(norm),
        *stored(weight),
        bias,
        residual,
        out,
        rows,
        columns,
        depth,
        0.0 if norm is None else norm.eps,
        BM=tile.rows,
        BN=tile.keys,
        BK=block,
        DOT=DOT[weight.dtype],
        NORM=norm is not None,
        INT8=isinstance(weight, Int8),
        BIAS=bias is not None,
        ACTIVATION=activation,
        RESIDUAL=residual is not None,
        WHOLE=depth % block == 0,
    )
    return out


def project_heads(
    launch: Launcher,
    x: torch.Tensor,
    weight: Matrix,
    bias: torch.Tensor | None,
    norm: Norm | None,
    rings: tuple[torch.Tensor, torch.Tensor],
    slots: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor:
    """Queries [rows, H, D] of x [rows, depth]; keys and values go into rings [slots, H, capacity, D] by slots and positions [rows].

    weight [3, H, D, depth], bias [3, H, D]: query, key, value. Packed keys are rings of capacity 1 in slots 0, 1, ….
    """
    rows, (_, heads, head_dim, depth) = len(x), weight.shape
    tile = choose(launch.tiles.project, rows, weight.dtype.itemsize)
    query = torch.empty((rows, heads, head_dim), dtype=rings[0].dtype, device=x.device)
    block = DEPTH[weight.dtype.itemsize]
    launch(
        kernels.project_heads,
        (-(-rows // tile.rows), heads, 3),
        tile,
        x,
        *_norm(norm),
        *stored(weight),
        bias,
        query,
        *rings,
        slots,
        positions,
        rows,
        rings[0].shape[2],
        depth,
        0.0 if norm is None else norm.eps,
        D=head_dim,
        DP=padded(head_dim),
        BM=tile.rows,
        BK=block,
        DOT=DOT[weight.dtype],
        NORM=norm is not None,
        INT8=isinstance(weight, Int8),
        BIAS=bias is not None,
        WHOLE=depth % block == 0,
    )
    return query


def write_rings(
    launch: Launcher,
    new: tuple[torch.Tensor, torch.Tensor],
    rings: tuple[torch.Tensor, torch.Tensor],
    source_rows: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
) -> None:
    """Keys and values [rows, H, D] of source_rows, no two of one slot and place, into rings [slots, H, capacity, D]."""
    _, heads, capacity, head_dim = rings[0].shape
    tile = choose(launch.tiles.copy, len(source_rows), rings[0].element_size())
    launch(
        kernels.write_rings,
        (-(-len(source_rows) // tile.rows), heads),
        tile,
        *new,
        *rings,
        source_rows,
        slots,
        positions,
        len(source_rows),
        capacity,
        D=head_dim,
        DP=padded(head_dim),
        BM=tile.rows,
    )


def normalise(launch: Launcher, x: torch.Tensor, norm: Norm) -> torch.Tensor:
    """LayerNorm of x [rows, depth]; float32."""
    rows, depth = x.shape
    tile = choose(launch.tiles.norm, rows, x.element_size())
    out = torch.empty((rows, depth), dtype=torch.float32, device=x.device)
    launch(
        kernels.normalise,
        (-(-rows // tile.rows),),
        tile,
        x,
        *_norm(norm),
        out,
        rows,
        depth,
        norm.eps,
        BM=tile.rows,
        BK=tile.keys,
        WHOLE=depth % tile.keys == 0,
    )
    return out


def _norm(norm: Norm | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    return (None, None) if norm is None else (norm.gain, norm.shift)
