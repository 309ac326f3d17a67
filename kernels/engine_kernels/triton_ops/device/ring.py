"""Attention of one row per sequence against its ring, in parts where few rows see many keys; conventions as in attention.py."""

import triton
import triton.language as tl

from engine_kernels.triton_ops.device.attention import LOG2E, SIZES, load_matrix

SPLITS = tl.constexpr(32)  # the most parts the persistent vectors are cut into


@triton.jit(do_not_specialize=[*SIZES, "chunk"])
def attend_ring(
    query,  # [rows, H, D]
    content_bias,  # [H, D] float32
    ring_keys,  # [slots, H, capacity, D]
    ring_values,
    outs,  # states and scores of attend_constants
    peaks,
    totals,
    scores,
    spans,  # [H] float32
    sequence_rows,  # [sequences]: each one's only row among the packed ones
    slots,  # [sequences]
    positions,  # [sequences]
    attended,  # [rows, H, D]: the result, or if SPLIT the states of the parts: [parts, sequences, H, D] float32,
    part_peaks,  # [parts, sequences, H] float32
    part_totals,
    part_kept,
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
    chunk,  # keys of a part
    D: tl.constexpr,
    DP: tl.constexpr,
    BN: tl.constexpr,
    BIASED: tl.constexpr,
    RELATIVE: tl.constexpr,
    SPANS: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Programs (sequence, head, part): the first merges the states of the persistent vectors, each streams its part of the ring's keys."""
    sequence = tl.program_id(0)
    head = tl.program_id(1)
    heads = tl.num_programs(1)
    part = tl.program_id(2)
    row = tl.load(sequence_rows + sequence).to(tl.int64)
    position = tl.load(positions + sequence).to(tl.int64)
    ring = (tl.load(slots + sequence).to(tl.int64) * heads + head) * capacity * D
    columns = tl.arange(0, DP)
    real = columns < D
    q = tl.load(query + (row * heads + head) * D + columns, mask=real, other=0.0)
    if BIASED:
        q = (q.to(tl.float32) + tl.load(content_bias + head * D + columns, mask=real, other=0.0)).to(q.dtype)
    q = q.to(tl.float32)

    splits = tl.where(part == 0, splits, 0)
    split = tl.arange(0, SPLITS)
    state = (split * heads + head).to(tl.int64) * rows + row
    each = tl.load(peaks + state, mask=split < splits, other=-float("inf"))
    peak = tl.max(each, 0)  # -inf without persistent vectors
    rise = tl.math.exp2(each - tl.where(splits > 0, peak, 0.0))
    total = tl.sum(tl.load(totals + state, mask=split < splits, other=0.0) * rise, 0)
    out = tl.sum(load_matrix(outs, state, split < splits, D, D, DP) * rise[:, None], 0)
    kept = total
    span = tl.load(spans + head) if SPANS else 0.0

    limit = tl.where(segment > 0, window + (position % tl.maximum(segment, 1)).to(tl.int32), reach)
    before = tl.minimum(position - first_distance + 1, reach).to(tl.int32)
    limit = tl.where(attended_zeros != 0, limit, tl.minimum(limit, before))
    newest = ((position - first_distance + capacity) % capacity).to(tl.int32)  # the slot of nearness 0
    if RELATIVE:
        last_score = scores + (head.to(tl.int64) * rows + row) * (pitch * 16) + (reach - 1)
    for start in range(part * chunk, tl.minimum(limit, (part + 1) * chunk), BN):
        near = start + tl.arange(0, BN)
        inside = near < limit
        slot = newest - near
        slot = tl.where(slot < 0, slot + capacity, slot)
        k = load_matrix(ring_keys + ring, slot, inside, D, D, DP).to(tl.float32)
        v = load_matrix(ring_values + ring, slot, inside, D, D, DP).to(tl.float32)
        s = tl.sum(k * q[None, :], 1)
        if RELATIVE:
            s += tl.load(last_score - near, mask=inside, other=0.0).to(tl.float32)
        s = tl.where(inside, s * (LOG2E / D**0.5), -float("inf"))
        top = tl.maximum(peak, tl.max(s, 0))
        p = tl.math.exp2(s - top)
        fade = tl.math.exp2(peak - top)
        total = total * fade + tl.sum(p, 0)
        if SPANS:
            p = p * tl.minimum(tl.maximum((1.0 - (near + first_distance).to(tl.float32) + span) / ramp + 1.0, 0.0), 1.0)
            kept = kept * fade + tl.sum(p, 0)
        out = out * fade + tl.sum(p[:, None] * v, 0)
        peak = top
    if SPLIT:
        at = (part * tl.num_programs(0) + sequence).to(tl.int64) * heads + head
        tl.store(attended + at * D + columns, out, mask=real)
        tl.store(part_peaks + at, peak)
        tl.store(part_totals + at, total)
        if SPANS:
            tl.store(part_kept + at, kept)
    else:
        share = kept + 1e-8 * total if SPANS else total
        result = (out / share).to(attended.dtype.element_ty)
        tl.store(attended + (row * heads + head) * D + columns, result, mask=real)


@triton.jit(do_not_specialize=["parts"])
def merge_parts(
    outs,  # [parts, sequences, H, D] float32: states of attend_ring
    peaks,  # [parts, sequences, H] float32
    totals,
    kept,
    sequence_rows,  # [sequences]: each one's only row among the packed ones
    attended,  # [rows, H, D]: the result
    parts,
    D: tl.constexpr,
    DP: tl.constexpr,
    PARTS: tl.constexpr,  # no fewer than parts
    SPANS: tl.constexpr,
):
    """Programs (sequence, head): the states of the parts of a window, in the order of their index."""
    sequence = tl.program_id(0)
    head = tl.program_id(1)
    heads = tl.num_programs(1)
    row = tl.load(sequence_rows + sequence).to(tl.int64)
    part = tl.arange(0, PARTS)
    there = part < parts
    at = (part * tl.num_programs(0) + sequence).to(tl.int64) * heads + head
    each = tl.load(peaks + at, mask=there, other=-float("inf"))
    rise = tl.math.exp2(each - tl.max(each, 0))
    share = tl.sum(tl.load(totals + at, mask=there, other=0.0) * rise, 0)
    if SPANS:
        share = tl.sum(tl.load(kept + at, mask=there, other=0.0) * rise, 0) + 1e-8 * share
    out = tl.sum(load_matrix(outs, at, there, D, D, DP) * rise[:, None], 0)
    columns = tl.arange(0, DP)
    tl.store(attended + (row * heads + head) * D + columns, (out / share).to(attended.dtype.element_ty), mask=columns < D)
