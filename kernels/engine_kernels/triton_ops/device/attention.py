"""Attention of packed rows: the constants of the layer for all rows, then the context of many rows of a sequence; of one row in ring.py.

Head counts are grid sizes and row counts plain arguments, so that one compiled kernel serves every layer of every pruned model. Strides
are formed here from grid sizes and the constant head size D, which keeps their alignment known; DP is D rounded up to a power of two of at
least 16, as matrix instructions need. Running softmax states are (peak, total, out) in float32, peaks in units of log2.
Equations: ops.py; how data moves: docs/kernels.md.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
SIZES = ["rows", "capacity", "window", "segment", "reach", "first_distance", "attended_zeros", "pitch", "splits", "ramp"]


@triton.jit
def load_matrix(base, rows, there, stride, D: tl.constexpr, DP: tl.constexpr):
    """Rows [R] of a matrix with D columns as [R, DP]; zeros where not `there` [R] and beyond D."""
    columns = tl.arange(0, DP)
    mask = there[:, None]
    if D != DP:
        mask = mask & (columns < D)[None, :]
    return tl.load(base + rows[:, None] * stride + columns[None, :], mask=mask, other=0.0)


@triton.jit
def load_query(query, bias, row, there, head, heads, D: tl.constexpr, DP: tl.constexpr, BIASED: tl.constexpr):
    """Queries [R, DP] of rows [R] of one head, out of [rows, H, D], plus the head's bias [D]; rounded to the dtype of the query."""
    q = load_matrix(query + head * D, row, there, heads * D, D, DP)
    if BIASED:
        columns = tl.arange(0, DP)
        shift = tl.load(bias + head * D + columns, mask=columns < D, other=0.0)
        q = (q.to(tl.float32) + shift[None, :].to(tl.float32)).to(q.dtype)
    return q


@triton.jit
def store_matrix(base, rows, there, stride, matrix, D: tl.constexpr, DP: tl.constexpr):
    """The first D columns of [R, DP] to rows [R], in the dtype of the pointer."""
    columns = tl.arange(0, DP)
    mask = there[:, None]
    if D != DP:
        mask = mask & (columns < D)[None, :]
    tl.store(base + rows[:, None] * stride + columns[None, :], matrix.to(base.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows", "persistent", "chunk", "splits", "tables", "reach", "pitch"])
def attend_constants(
    query,  # [rows, H, D]
    position_bias,  # [H, D] float32
    persistent_keys,  # [H, N, D]
    persistent_values,  # [H, N, D]
    distances,  # [H or 1, W, D]
    key_scale,  # [H, N] float32, of int8
    value_scale,  # [H, D] float32
    distance_scale,  # [H or 1, W] float32
    outs,  # [splits, H, rows, D] float32: the states of the splits
    peaks,  # [splits, H, rows] float32
    totals,  # [splits, H, rows] float32
    scores,  # [H, rows, pitch]: column c is nearness W - 1 - c, so that the keys of a row stand in the order of their positions
    rows,
    persistent,  # N
    chunk,  # persistent vectors of a split, a multiple of BN
    splits,
    tables,  # of distances: one for each head, or one for all
    reach,  # W
    pitch,  # of a row of scores, in units of 16
    D: tl.constexpr,
    DP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BIASED: tl.constexpr,
    INT8: tl.constexpr,
    WHOLE: tl.constexpr,  # N is a multiple of BN
    DESCRIBED: tl.constexpr,  # persistent_keys and persistent_values are descriptors of [H · N, D] with blocks [BN, D]
):
    """Programs (row tile, part, head): parts below `splits` run over persistent vectors, those above form the scores by distance."""
    part = tl.program_id(1)
    head = tl.program_id(2)
    heads = tl.num_programs(2)
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    there = row < rows
    if part < splits:
        q = load_query(query, position_bias, row, there, head, heads, D, DP, False)
        first = part * chunk
        last = tl.minimum(first + chunk, persistent)
        base = head.to(tl.int64) * persistent * D
        peak = tl.full([BM], -float("inf"), tl.float32)
        total = tl.zeros([BM], tl.float32)
        out = tl.zeros([BM, DP], tl.float32)
        for start in range(first, last, BN):
            n = start + tl.arange(0, BN)
            inside = n < last
            if DESCRIBED:
                k = persistent_keys.load([head * persistent + start, 0])
                v = persistent_values.load([head * persistent + start, 0])
            elif WHOLE and D == DP:
                at = n[:, None] * D + tl.arange(0, DP)[None, :]
                k = tl.load(persistent_keys + base + at)
                v = tl.load(persistent_values + base + at)
            else:
                k = load_matrix(persistent_keys + base, n, inside, D, D, DP)
                v = load_matrix(persistent_values + base, n, inside, D, D, DP)
            s = tl.dot(q, tl.trans(k.to(q.dtype)), input_precision="ieee") * LOG2E
            if INT8:
                s *= tl.load(key_scale + head.to(tl.int64) * persistent + n, mask=inside, other=0.0)[None, :]
            if not WHOLE:
                s = tl.where(inside[None, :], s, -float("inf"))
            top = tl.maximum(peak, tl.max(s, 1))
            p = tl.math.exp2(s - top[:, None])
            fade = tl.math.exp2(peak - top)
            total = total * fade + tl.sum(p, 1)
            out = tl.dot(p.to(q.dtype), v.to(q.dtype), out * fade[:, None], input_precision="ieee")
            peak = top
        if INT8:
            column = tl.arange(0, DP)
            out *= tl.load(value_scale + head * D + column, mask=column < D, other=0.0)[None, :]
        state = (part * heads + head).to(tl.int64) * rows
        store_matrix(outs + state * D, row, there, D, out, D, DP)
        tl.store(peaks + state + row, peak, mask=there)
        tl.store(totals + state + row, total, mask=there)
    else:
        q = load_query(query, position_bias, row, there, head, heads, D, DP, BIASED)
        column = (part - splits) * BN + tl.arange(0, BN)
        inside = column < reach
        table = tl.minimum(head, tables - 1).to(tl.int64) * reach
        r = load_matrix(distances + table * D, reach - 1 - column, inside, D, D, DP)
        s = tl.dot(q, tl.trans(r.to(q.dtype)), input_precision="ieee")
        if INT8:
            s *= tl.load(distance_scale + table + reach - 1 - column, mask=inside, other=0.0)[None, :]
        width = pitch * 16
        at = scores + head.to(tl.int64) * rows * width + row[:, None].to(tl.int64) * width + column[None, :]
        tl.store(at, s.to(scores.dtype.element_ty), mask=there[:, None] & inside[None, :])


@triton.jit
def see_keys(
    q,  # [BM, DP]
    k,  # [BN, DP]
    v,
    j,  # [BN]: the keys' places, counted from the first new row of the sequence
    newest,  # [BM]: the last key each row sees
    oldest,  # [BM]: the first
    skewed,  # the score of the tile's first row and key 0 by distance
    pitch,  # between the scores of rows, less the one place their keys move on
    nearest,  # what distance is at key newest
    span,
    ramp,
    peak,  # [BM]: the rows' states
    total,
    kept,
    out,  # [BM, DP]
    D: tl.constexpr,
    BM: tl.constexpr,
    RELATIVE: tl.constexpr,
    SPANS: tl.constexpr,
    ALL: tl.constexpr,  # every row sees every key of the block
):
    """One block of keys into the states of a tile's rows."""
    s = tl.dot(q, tl.trans(k), input_precision="ieee")
    visible = (j[None, :] <= newest[:, None]) & (j[None, :] >= oldest[:, None])
    if RELATIVE:
        at = (tl.arange(0, BM) * pitch)[:, None] + j[None, :]
        s += tl.load(skewed + at, mask=visible, other=0.0).to(tl.float32)
    s = s * (LOG2E / D**0.5)
    if not ALL:
        s = tl.where(visible, s, -float("inf"))
    top = tl.maximum(peak, tl.max(s, 1))
    level = top if ALL else tl.where(top == -float("inf"), 0.0, top)  # a row that has seen nothing yet
    p = tl.math.exp2(s - level[:, None])
    fade = tl.math.exp2(peak - level)
    total = total * fade + tl.sum(p, 1)
    if SPANS:
        distance = (newest[:, None] - j[None, :] + nearest).to(tl.float32)
        p = p * tl.minimum(tl.maximum((1.0 - distance + span) / ramp + 1.0, 0.0), 1.0)
        kept = kept * fade + tl.sum(p, 1)
    out = tl.dot(p.to(v.dtype), v, out * fade[:, None], input_precision="ieee")
    return top, total, kept, out


@triton.jit(do_not_specialize=SIZES)
def attend_rows(
    query,  # [rows, H, D]
    content_bias,  # [H, D] float32
    past_keys,  # [slots, H, capacity, D]: rings
    past_values,
    keys,  # [rows, H, D]: of the new rows
    values,
    outs,  # states and scores of attend_constants
    peaks,
    totals,
    scores,
    spans,  # [H] float32
    tile_sequence,  # [tiles]: the sequence of each tile of rows
    tile_row,  # [tiles]: its first row in that sequence
    first_rows,  # [sequences]: where a sequence's rows begin in the packed ones
    lengths,  # [sequences]
    slots,  # [sequences]
    offsets,  # [sequences]: the key of row j < 0 stands in slot (offset + j) mod capacity of its ring
    positions,  # [sequences]: of row 0
    attended,  # [rows, H, D]: the result
    rows,
    capacity,
    window,
    segment,
    reach,
    first_distance,
    attended_zeros,
    pitch,
    splits,
    ramp,
    D: tl.constexpr,
    DP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BIASED: tl.constexpr,
    RELATIVE: tl.constexpr,
    SPANS: tl.constexpr,
):
    """Programs (tile of rows, head): from the states of the persistent vectors on over the ring's keys and then the new ones."""
    tile = tl.program_id(0)
    head = tl.program_id(1)
    heads = tl.num_programs(1)
    sequence = tl.load(tile_sequence + tile)
    start = tl.load(tile_row + tile).to(tl.int32)
    length = tl.load(lengths + sequence).to(tl.int32)
    position = tl.load(positions + sequence).to(tl.int64)
    offset = (tl.load(offsets + sequence) % capacity).to(tl.int32)
    ring = (tl.load(slots + sequence).to(tl.int64) * heads + head) * capacity * D
    packed = tl.load(first_rows + sequence).to(tl.int64)  # row 0 of the sequence
    time = start + tl.arange(0, BM)
    there = time < length
    q = load_query(query + packed * heads * D, content_bias, time, there, head, heads, D, DP, BIASED)

    # Rows see nearness 0 .. limit - 1.
    place = position + time
    limit = tl.where(segment > 0, window + (place % tl.maximum(segment, 1)).to(tl.int32), reach)
    before = tl.minimum(place - first_distance + 1, reach).to(tl.int32)  # keys at positions of at least 0
    limit = tl.where(attended_zeros != 0, limit, tl.minimum(limit, before))
    limit = tl.where(there, limit, 0)

    peak = tl.full([BM], -float("inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    out = tl.zeros([BM, DP], tl.float32)
    for split in range(0, splits):
        at = (split * heads + head).to(tl.int64) * rows + packed
        other = tl.load(peaks + at + time, mask=there, other=0.0)
        top = tl.maximum(peak, other)
        fade, rise = tl.math.exp2(peak - top), tl.math.exp2(other - top)
        total = total * fade + tl.load(totals + at + time, mask=there, other=0.0) * rise
        out = out * fade[:, None] + load_matrix(outs + at * D, time, there, D, D, DP) * rise[:, None]
        peak = top
    span = tl.load(spans + head) if SPANS else 0.0

    # Row `time` sees keys oldest .. newest; its scores by distance end, at nearness 0, in column reach - 1.
    newest = time - first_distance
    oldest = newest - limit + 1
    last = tl.minimum(start + BM, length) - 1 - first_distance  # what any row of the tile sees
    earliest = tl.min(tl.where(limit > 0, oldest, last + 1), 0)
    width = pitch * 16
    skewed = scores
    if RELATIVE:
        skewed += (head.to(tl.int64) * rows + packed + start) * width + (reach - 1 + first_distance - start)
    kept = total
    for block in range(-tl.cdiv(tl.maximum(-earliest, 0), BN), 0):
        j = block * BN + tl.arange(0, BN)
        inside = (j < 0) & (j >= earliest)  # what no row sees may be anything, and zero times NaN is NaN
        slot = offset + j
        slot = tl.where(slot < 0, slot + capacity, slot)
        k = load_matrix(past_keys + ring, slot, inside, D, D, DP)
        v = load_matrix(past_values + ring, slot, inside, D, D, DP)
        peak, total, kept, out = see_keys(
            q, k, v, j, newest, oldest, skewed, width - 1, first_distance, span, ramp, peak, total, kept, out, D, BM, RELATIVE, SPANS, False
        )
    new = (packed * heads + head) * D
    for block in range(tl.maximum(earliest, 0) // BN, (last + BN) // BN):
        j = block * BN + tl.arange(0, BN)
        inside = (j >= earliest) & (j <= last)
        k = load_matrix(keys + new, j, inside, heads * D, D, DP)
        v = load_matrix(values + new, j, inside, heads * D, D, DP)
        peak, total, kept, out = see_keys(
            q, k, v, j, newest, oldest, skewed, width - 1, first_distance, span, ramp, peak, total, kept, out, D, BM, RELATIVE, SPANS, False
        )

    share = kept + 1e-8 * total if SPANS else total
    share = tl.where(there, share, 1.0)
    store_matrix(attended + packed * heads * D + head * D, time, there, heads * D, out / share[:, None], D, DP)
