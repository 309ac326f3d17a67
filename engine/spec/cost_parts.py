"""The formulas of cost: multiply-adds of every part of a layer and of the model, as integers from a spec.

FLOPs are 2 per multiply-add of a matrix product; norms, softmax, biases, activations and span ramps are not counted (nor does torch's
FlopCounterMode count them). `needed` counts the keys a token sees, `executed` those a backend with a tile of query rows multiplies.
Sources: the forward passes of arXiv 2110.03252 (aiha-lab, All-attention), arXiv 1907.01470 and 1905.07799 (FAIR) and arXiv 1901.02860
(Transformer-XL, mem_transformer.py), with keys, values and projected distances kept instead of projected again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.spec import AttentionSpec, Embedding, FeedForward, Labels, LayerSpec, ModelSpec, SharedTable, Vocabulary

PARTS = (
    "query",
    "key",
    "value",
    "content",
    "relative",
    "persistent",
    "values",
    "output",
    "feed_forward",
    "norms",
    "embedding",
    "vocabulary",
)


@dataclass(frozen=True)
class Flops:
    """Floating-point operations, 2 per multiply-add: `needed` with visible keys only, `executed` with the tiles of the reference."""

    needed: int
    executed: int

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.needed + other.needed, self.executed + other.executed)

    def __mul__(self, times: int) -> Flops:
        return Flops(self.needed * times, self.executed * times)


NONE = Flops(0, 0)


@dataclass(frozen=True)
class Work:
    """What one sequence runs: `rows` tokens from the start of a stream in blocks of `tile_rows`, or one token far from the start.

    context: None, or for the one token the keys it sees in a layer without a window; a layer with one shows it its whole reach.
    """

    rows: int
    tile_rows: int
    context: int | None = None


def part_of(tensor: str) -> str:
    """The part a tensor of `ModelSpec.tensors()` belongs to."""
    group, _, name = tensor.removeprefix("layers.").lstrip("0123456789.").partition(".")
    if group == "attention":
        return _ATTENTION_PARTS.get(name, name.removesuffix("_bias"))
    return {"embedding": "embedding", "head": "vocabulary", "position": "relative", "feed_forward": "feed_forward"}.get(group, "norms")


_ATTENTION_PARTS = {
    "content_bias": "content",
    "position_bias": "relative",
    "persistent_keys": "persistent",
    "persistent_values": "persistent",
    "head_scale": "output",
}


def layer_flops(layer: LayerSpec, hidden: int, work: Work) -> dict[str, Flops]:
    """FLOPs of one sequence through one layer, by part; a layer without heads costs its feed-forward alone.

    Multiply-adds with h heads of dh, d = hidden, N persistent vectors, n rows that see K keys in all: query, key, value, output n·h·dh·d
    each, content, relative, values K·h·dh each, persistent 2·n·N·h·dh. One token that sees M+1 keys: h·dh·(4d + 2N + 3(M+1)).
    The projection of the distances is formed at load and costs nothing here.
    """
    return _attention_flops(layer.attention, hidden, work) | {"feed_forward": _feed_forward_flops(layer.feed_forward, hidden, work)}


def _attention_flops(a: AttentionSpec, hidden: int, work: Work) -> dict[str, Flops]:
    width = a.heads * a.head_dim
    visible, multiplied, distances = visible_keys(a, work), executed_keys(a, work), executed_distances(a, work)
    has_distances = a.relative or isinstance(a.position, SharedTable)
    return {
        "query": _dense(work.rows * hidden * width),
        "key": _dense(work.rows * hidden * a.kv_heads * a.head_dim),
        "value": _dense(work.rows * hidden * a.kv_heads * a.head_dim),
        "content": Flops(2 * visible * width, 2 * multiplied * width),
        "relative": Flops(2 * visible * width, 2 * distances * width) if has_distances else NONE,
        "persistent": _dense(2 * work.rows * a.persistent * width),
        "values": Flops(2 * visible * width, 2 * multiplied * width),
        "output": _dense(work.rows * width * hidden),
    }


def _feed_forward_flops(f: FeedForward | None, hidden: int, work: Work) -> Flops:
    return _dense(work.rows * hidden * f.width * (3 if f.gated else 2)) if f else NONE


def _dense(multiply_adds: int) -> Flops:
    return Flops(2 * multiply_adds, 2 * multiply_adds)


def visible_keys(a: AttentionSpec, work: Work) -> int:
    """Query-key pairs that take part in the attention of `work`'s rows, per head.

    A token sees window keys, in a segment one more per token before it in the segment; zero rows before the start count where they are
    attended, and where the start is empty only the tokens that exist do. Without a window a token sees itself and all before it, in an
    encoder all rows. Keys outside an adaptive span still enter the softmax and its 1e-8 (arXiv 1905.07799): they count.
    """
    if work.context is not None:
        return work.context if a.reach is None else a.reach
    if a.window is None:
        return work.rows * (work.rows + 1) // 2 if a.causal else work.rows * work.rows
    if a.start == "attended_zeros" and not a.segment:
        return work.rows * a.window
    total = 0
    for position in range(work.rows):
        keys = a.window + (position % a.segment if a.segment else 0)
        total += keys if a.start == "attended_zeros" else min(keys, position + a.sees_self)
    return total


def executed_keys(a: AttentionSpec, work: Work) -> int:
    """Query-key pairs multiplied per head: each block of b rows with all reach + b - 1 keys that one of its rows sees."""
    if work.context is not None:
        return visible_keys(a, work)
    if a.reach is None:
        return sum(b * (end if a.causal else work.rows) for b, end in _blocks(work))
    return sum(b * (a.reach + b - 1) for b, _ in _blocks(work))


def executed_distances(a: AttentionSpec, work: Work) -> int:
    """Query-distance pairs multiplied per head: each row with every distance of the reach."""
    return work.rows * (a.reach or work.context or work.rows)


def _blocks(work: Work) -> list[tuple[int, int]]:
    """(rows of the block, first row after it) of every block."""
    starts = range(0, work.rows, work.tile_rows)
    return [(min(work.tile_rows, work.rows - start), min(start + work.tile_rows, work.rows)) for start in starts]


def embedding_flops(embedding: Embedding, hidden: int, rows: int, token_counts: Sequence[float] | None) -> Flops:
    """Rows of each projected cluster times its width times d; all rows in the first cluster unless `token_counts` says otherwise."""
    counts = token_counts or [1.0] + [0.0] * (len(embedding.clusters) - 1)
    share = [count / sum(counts) for count in counts]
    return _dense(round(sum(rows * s * c.width * hidden for s, c in zip(share, embedding.clusters, strict=True) if c.projected)))


def head_flops(spec: ModelSpec, rows: int) -> Flops:
    """The full distribution: every cluster's projection, all its words, and the entries of the further clusters (arXiv 1609.04309)."""
    head = spec.head
    if isinstance(head, Labels):
        pooler = spec.hidden * spec.hidden if head.pooler else 0
        return _dense((1 if head.pooled else rows) * (pooler + spec.hidden * head.labels))
    if not isinstance(head, Vocabulary):
        return NONE
    words = sum(c.size * c.width + (spec.hidden * c.width if c.projected else 0) for c in head.clusters)
    words += spec.hidden * spec.hidden if head.transform else 0
    entry_width = spec.hidden if head.cluster_input == "hidden" else head.clusters[0].width
    return _dense(rows * (words + (len(head.clusters) - 1) * entry_width))


def activation_numbers(layer: LayerSpec, batch: int, work: Work) -> int:
    """Numbers that live at once inside a layer beside the residual stream: an estimate, within a factor of 2 of the reference.

    Attention: queries and two copies of the head outputs, keys and values with the reach before them (one row reads them where they are),
    and one block's scores three times: as products, joined, after the softmax. Or the feed-forward's inner rows twice, where that is more.
    """
    a, f, rows = layer.attention, layer.feed_forward, batch * work.rows
    block = min(work.tile_rows, work.rows)
    keys = work.rows if a.reach is None else a.reach + block - 1
    before = batch * (a.reach or 0) if work.rows > 1 else 0
    attention = (3 * rows * a.heads + 2 * (rows + before) * a.kv_heads) * a.head_dim + 3 * batch * a.heads * block * (keys + a.persistent)
    return max(attention, 2 * rows * f.width if f else 0)
