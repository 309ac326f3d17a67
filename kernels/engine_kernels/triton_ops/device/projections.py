"""Matrix products with what stands around them in a layer: LayerNorm before, bias, activation, residual, heads and rings after.

Rows are [rows, depth] in float32 or in the dtype of the products, DOT; weights [columns, depth] in DOT, or int8 with a float32 scale for
each column of the result; sums are float32. The statistics of a LayerNorm are formed by every program for its own rows, which costs one
more pass over rows that are in cache and saves a launch.
"""

import triton
import triton.language as tl

from engine_kernels.triton_ops.device.attention import store_matrix

ROOT8_PI = tl.constexpr(1.5957691216057308)  # √(8/π)


@triton.jit
def load_block(base, row, there, column, inside, depth, WHOLE: tl.constexpr):
    """[BM, BK] of a matrix [.., depth]; zeros where not `there` [BM], and where not `inside` [BK] unless WHOLE."""
    mask = there[:, None] if WHOLE else there[:, None] & inside[None, :]
    return tl.load(base + row[:, None].to(tl.int64) * depth + column[None, :], mask=mask, other=0.0)


@triton.jit
def row_statistics(x, row, there, depth, eps, BM: tl.constexpr, BK: tl.constexpr, WHOLE: tl.constexpr):
    """Mean and 1 / standard deviation [BM] of rows, block by block, each block centred on its own mean."""
    mean = tl.zeros([BM], tl.float32)
    squares = tl.zeros([BM], tl.float32)  # of distances from the mean
    for start in range(0, depth, BK):
        column = start + tl.arange(0, BK)
        inside = column < depth
        block = load_block(x, row, there, column, inside, depth, WHOLE).to(tl.float32)
        before = start * 1.0
        more = tl.minimum(depth - start, BK) * 1.0
        block_mean = tl.sum(block, 1) / more
        centred = tl.where(inside[None, :], block - block_mean[:, None], 0.0)
        shift = block_mean - mean
        squares += tl.sum(centred * centred, 1) + shift * shift * (before * more / (before + more))
        mean += shift * (more / (before + more))
    return mean, tl.math.rsqrt(squares / depth + eps)


@triton.jit
def rows_times(
    x, gain, shift, eps, weight, scale, row, there, out, real, depth, BM: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr,
    NORM: tl.constexpr, INT8: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """LayerNorm of rows if NORM, times rows `out` [BN] of the weight where `real`; [BM, BN] float32."""
    if NORM:
        mean, inverse = row_statistics(x, row, there, depth, eps, BM, BK, WHOLE)
    sums = tl.zeros([BM, out.shape[0]], tl.float32)
    for start in range(0, depth, BK):
        column = start + tl.arange(0, BK)
        inside = column < depth
        a = load_block(x, row, there, column, inside, depth, WHOLE)
        if NORM:
            g = tl.load(gain + column, mask=inside, other=0.0).to(tl.float32)
            s = tl.load(shift + column, mask=inside, other=0.0).to(tl.float32)
            a = (a - mean[:, None]) * inverse[:, None] * g[None, :] + s[None, :]
        w = load_block(weight, out, real, column, inside, depth, WHOLE).to(DOT)
        sums = tl.dot(a.to(DOT), tl.trans(w), sums, input_precision="ieee")
    if INT8:
        sums *= tl.load(scale + out, mask=real, other=0.0)[None, :]
    return sums


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """An activation of x in float32, by the equations of ops.py's feed_forward; x itself for None."""
    if ACTIVATION == "relu":
        x = tl.maximum(x, 0.0)
    elif ACTIVATION == "gelu":
        x = x * (0.5 + 0.5 * tl.math.erf(x * 0.5**0.5))
    elif ACTIVATION == "gelu_tanh":
        x = x / (1.0 + tl.math.exp((x + 0.044715 * x * x * x) * -ROOT8_PI))  # ½ + ½ tanh z = σ(2z)
    elif ACTIVATION == "quick_gelu":
        x = x / (1.0 + tl.math.exp(-1.702 * x))
    elif ACTIVATION == "silu":
        x = x / (1.0 + tl.math.exp(-x))
    return x


@triton.jit(do_not_specialize=["rows"])
def project(
    x,  # [rows, depth]
    gain,  # [depth]
    shift,  # [depth]
    weight,  # [columns, depth]
    scale,  # [columns] float32, of int8
    bias,  # [columns]
    residual,  # [rows, columns] float32
    out,  # [rows, columns]
    rows,
    columns,
    depth,
    eps,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    DOT: tl.constexpr,
    NORM: tl.constexpr,
    INT8: tl.constexpr,
    BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    RESIDUAL: tl.constexpr,
    WHOLE: tl.constexpr,  # depth is a multiple of BK
):
    """Programs (row tile, column tile): out = residual + activation(norm(x) · weightᵀ + bias), each part where asked for."""
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    column = tl.program_id(1) * BN + tl.arange(0, BN)
    there, real = row < rows, column < columns
    sums = rows_times(x, gain, shift, eps, weight, scale, row, there, column, real, depth, BM, BK, DOT, NORM, INT8, WHOLE)
    if BIAS:
        sums += tl.load(bias + column, mask=real, other=0.0)[None, :].to(tl.float32)
    sums = activate(sums, ACTIVATION)
    if RESIDUAL:
        sums += load_block(residual, row, there, column, real, columns, False)
    at = out + row[:, None].to(tl.int64) * columns + column[None, :]
    tl.store(at, sums.to(out.dtype.element_ty), mask=there[:, None] & real[None, :])


@triton.jit(do_not_specialize=["rows", "capacity"])
def project_heads(
    x,  # [rows, depth]
    gain,  # [depth]
    shift,  # [depth]
    weight,  # [3, H, D, depth]: query, key, value
    scale,  # [3, H, D] float32, of int8
    bias,  # [3, H, D]
    query,  # [rows, H, D]
    keys,  # [slots, H, capacity, D]
    values,
    slots,  # [rows]
    positions,  # [rows]: a row's key stands in slot position mod capacity of its ring
    rows,
    capacity,
    depth,
    eps,
    D: tl.constexpr,
    DP: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    DOT: tl.constexpr,
    NORM: tl.constexpr,
    INT8: tl.constexpr,
    BIAS: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Programs (row tile, head, one of query, key, value). Rings of capacity 1 in slots 0, 1, … are packed rows [rows, H, D]."""
    head = tl.program_id(1)
    heads = tl.num_programs(1)
    which = tl.program_id(2)
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    there = row < rows
    column = tl.arange(0, DP)
    real = column < D
    first = (which * heads + head) * D
    own = weight + first.to(tl.int64) * depth
    scales = scale + first if INT8 else scale
    sums = rows_times(x, gain, shift, eps, own, scales, row, there, column, real, depth, BM, BK, DOT, NORM, INT8, WHOLE)
    if BIAS:
        sums += tl.load(bias + first + column, mask=real, other=0.0)[None, :].to(tl.float32)
    if which == 0:
        store_matrix(query + head * D, row.to(tl.int64), there, heads * D, sums, D, DP)
    else:
        slot = tl.load(slots + row, mask=there, other=0).to(tl.int64)
        place = (tl.load(positions + row, mask=there, other=0) % capacity).to(tl.int64)
        at = (slot * heads + head) * capacity + place
        if which == 1:
            store_matrix(keys, at, there, D, sums, D, DP)
        else:
            store_matrix(values, at, there, D, sums, D, DP)


@triton.jit(do_not_specialize=["count", "capacity"])
def write_rings(
    keys,  # [rows, H, D]
    values,
    ring_keys,  # [slots, H, capacity, D]
    ring_values,
    source_rows,  # [count]: which rows go into the rings
    slots,  # [rows]
    positions,  # [rows]
    count,
    capacity,
    D: tl.constexpr,
    DP: tl.constexpr,
    BM: tl.constexpr,
):
    """Programs (tile of source rows, head): new keys and values to the slots of their positions."""
    head = tl.program_id(1)
    heads = tl.num_programs(1)
    index = tl.program_id(0) * BM + tl.arange(0, BM)
    there = index < count
    row = tl.load(source_rows + index, mask=there, other=0).to(tl.int64)
    slot = tl.load(slots + row, mask=there, other=0).to(tl.int64)
    at = (slot * heads + head) * capacity + (tl.load(positions + row, mask=there, other=0) % capacity).to(tl.int64)
    column = tl.arange(0, DP)
    mask = there[:, None] & (column < D)[None, :]
    source = ((row * heads + head) * D)[:, None] + column[None, :]
    target = (at * D)[:, None] + column[None, :]
    tl.store(ring_keys + target, tl.load(keys + source, mask=mask, other=0.0), mask=mask)
    tl.store(ring_values + target, tl.load(values + source, mask=mask, other=0.0), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def normalise(x, gain, shift, out, rows, depth, eps, BM: tl.constexpr, BK: tl.constexpr, WHOLE: tl.constexpr):
    """Programs (row tile): LayerNorm of rows [rows, depth]."""
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    there = row < rows
    mean, scale = row_statistics(x, row, there, depth, eps, BM, BK, WHOLE)
    for start in range(0, depth, BK):
        column = start + tl.arange(0, BK)
        inside = column < depth
        g = tl.load(gain + column, mask=inside, other=0.0).to(tl.float32)
        s = tl.load(shift + column, mask=inside, other=0.0).to(tl.float32)
        block = load_block(x, row, there, column, inside, depth, WHOLE).to(tl.float32)
        block = (block - mean[:, None]) * scale[:, None] * g[None, :] + s[None, :]
        at = out + row[:, None].to(tl.int64) * depth + column[None, :]
        tl.store(at, block.to(out.dtype.element_ty), mask=there[:, None] & inside[None, :])
