"""The softmax over a vocabulary without its logits in memory."""

import triton
import triton.language as tl

from engine_kernels.triton_ops.device.attention import LOG2E
from engine_kernels.triton_ops.device.projections import rows_times


@triton.jit(do_not_specialize=["rows", "words", "chunk"])
def score_words(
    x,  # [rows, depth]
    weight,  # [words, depth]
    scale,  # [words] float32, of int8
    bias,  # [words]
    targets,  # [rows]: a word, or -1
    peaks,  # [parts, rows] float32, in units of log2
    totals,  # [parts, rows] float32
    picked,  # [parts, rows] float32: the target's logit in the part that has it, else 0
    rows,
    words,
    chunk,  # words of a part, a multiple of BN
    depth,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    DOT: tl.constexpr,
    INT8: tl.constexpr,
    BIAS: tl.constexpr,
    WHOLE: tl.constexpr,  # depth is a multiple of BK
):
    """Programs (row tile, part): running log-sum-exp of x · weightᵀ + bias over the part's words."""
    part = tl.program_id(1)
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    there = row < rows
    target = tl.load(targets + row, mask=there, other=-1)
    first = part * chunk
    last = tl.minimum(first + chunk, words)
    peak = tl.full([BM], -float("inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    pick = tl.zeros([BM], tl.float32)
    for start in range(first, last, BN):
        word = start + tl.arange(0, BN)
        real = word < last
        logits = rows_times(x, x, x, 0.0, weight, scale, row, there, word, real, depth, BM, BK, DOT, False, INT8, WHOLE)
        if BIAS:
            logits += tl.load(bias + word, mask=real, other=0.0)[None, :].to(tl.float32)
        pick += tl.sum(tl.where(word[None, :] == target[:, None], logits, 0.0), 1)
        s = tl.where(real[None, :], logits * LOG2E, -float("inf"))
        top = tl.maximum(peak, tl.max(s, 1))
        total = total * tl.math.exp2(peak - top) + tl.sum(tl.math.exp2(s - top[:, None]), 1)
        peak = top
    at = part * rows + row
    tl.store(peaks + at, peak, mask=there)
    tl.store(totals + at, total, mask=there)
    tl.store(picked + at, pick, mask=there)
