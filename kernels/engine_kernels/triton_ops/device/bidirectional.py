"""Attention of whole sequences, packed one after the other: every row sees every row of its own. Equation: ops.py, attend_bidirectional."""

import triton
import triton.language as tl

from engine_kernels.triton_ops.device.attention import load_matrix, see_keys, store_matrix


@triton.jit
def attend_bidirectional(
    query,  # [rows, H, D]
    keys,
    values,
    tile_sequence,  # [tiles]: the sequence of each tile of rows
    tile_row,  # [tiles]: its first row in that sequence
    first_rows,  # [sequences]: where a sequence's rows begin in the packed ones
    lengths,  # [sequences]
    attended,  # [rows, H, D]: the result
    D: tl.constexpr,
    DP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Programs (tile of rows, head): all keys of the tile's sequence, in whole blocks without a mask and then what is left of them."""
    tile = tl.program_id(0)
    head = tl.program_id(1)
    heads = tl.num_programs(1)
    sequence = tl.load(tile_sequence + tile)
    length = tl.load(lengths + sequence).to(tl.int32)
    base = (tl.load(first_rows + sequence).to(tl.int64) * heads + head) * D
    time = tl.load(tile_row + tile).to(tl.int32) + tl.arange(0, BM)
    there = time < length
    q = load_matrix(query + base, time, there, heads * D, D, DP)

    peak = tl.full([BM], -float("inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    out = tl.zeros([BM, DP], tl.float32)
    first = tl.zeros([BM], tl.int32)  # the keys every row sees
    last = first + length - 1
    whole = length // BN * BN
    for start in range(0, whole, BN):
        j = start + tl.arange(0, BN)
        k = load_matrix(keys + base, j, j < length, heads * D, D, DP)
        v = load_matrix(values + base, j, j < length, heads * D, D, DP)
        peak, total, _, out = see_keys(q, k, v, j, last, first, keys, 0, 0, 0.0, 1.0, peak, total, total, out, D, BM, False, False, True)
    for start in range(whole, length, BN):
        j = start + tl.arange(0, BN)
        k = load_matrix(keys + base, j, j < length, heads * D, D, DP)
        v = load_matrix(values + base, j, j < length, heads * D, D, DP)
        peak, total, _, out = see_keys(q, k, v, j, last, first, keys, 0, 0, 0.0, 1.0, peak, total, total, out, D, BM, False, False, False)
    store_matrix(attended + base, time, there, heads * D, out / total[:, None], D, DP)
