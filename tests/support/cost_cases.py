"""Specs built by hand for the tests of cost and inspect, one helper per dialect."""

from __future__ import annotations

from collections.abc import Sequence

from engine.spec import (
    AttentionSpec,
    Cluster,
    Embedding,
    FeedForward,
    LayerSpec,
    ModelSpec,
    OutputCluster,
    Position,
    SharedTable,
    Sinusoid,
    Table,
    Vocabulary,
)

S1_LISTS = {
    128: (8,) * 16,
    106: (8, 3, 7, 6, 6, 6, 6, 7, 6, 7, 8, 8, 7, 8, 7, 6),
    87: (6, 4, 6, 5, 4, 5, 5, 6, 5, 6, 7, 5, 6, 6, 6, 5),
    59: (5, 2, 5, 4, 3, 4, 4, 4, 4, 4, 4, 4, 3, 3, 3, 3),
}


def attention(
    heads: int,
    *,
    source_heads: int = 8,
    head_dim: int = 64,
    position: Position | None = None,
    persistent: int = 0,
    sees_self: bool = True,
    window: int | None = 193,
    segment: int | None = None,
    zeros: bool = True,
    spans: tuple[float, ...] | None = None,
    bias: bool = False,
    output_bias: bool = False,
    scaled: bool = False,
) -> AttentionSpec:
    """The last `heads` of `source_heads`, so that kept heads are never a prefix."""
    return AttentionSpec(
        source_heads=source_heads,
        kept=tuple(range(source_heads - heads, source_heads)),
        kv_of=tuple(range(heads)),
        head_dim=head_dim,
        position=position,
        persistent=persistent,
        causal=True,
        sees_self=sees_self,
        window=window,
        segment=segment,
        start="attended_zeros" if zeros else "empty",
        spans=spans,
        span_ramp=None if spans is None else 4,
        bias=bias,
        output_bias=output_bias,
        scaled=scaled,
    )


def layer(a: AttentionSpec, width: int = 0, *, norm_first: bool = True, offset: float = 0.0) -> LayerSpec:
    inner = FeedForward(width, "relu", False, True) if width else None
    return LayerSpec(a, inner, "layer", norm_first, 1e-5, offset)


def model(layers: Sequence[LayerSpec], hidden: int, embedding: Embedding, head: Vocabulary) -> ModelSpec:
    spec = ModelSpec(hidden, sum(c.size for c in embedding.clusters), tuple(layers), embedding, head, "causal_lm")
    return spec.check()


def plain(vocab: int, hidden: int) -> tuple[Embedding, Vocabulary]:
    """No clusters, untied."""
    return (
        Embedding((Cluster(vocab, hidden, False),), hidden**0.5),
        Vocabulary((OutputCluster(vocab, hidden, False, False, False),), "ascending", "hidden"),
    )


def adaptive(
    sizes: Sequence[int], hidden: int, div: int, *, order: str = "ascending", cluster_input: str = "hidden", tied: bool = True
) -> tuple[Embedding, Vocabulary]:
    """Clusters of falling width; rows tied, projections tied except the first, as aiha-lab and Transformer-XL have them."""
    widths = [hidden // div**index for index in range(len(sizes))]
    inputs = tuple(Cluster(size, width, True) for size, width in zip(sizes, widths, strict=True))
    outputs = tuple(OutputCluster(c.size, c.width, True, tied, tied and index > 0) for index, c in enumerate(inputs))
    return Embedding(inputs, hidden**0.5), Vocabulary(outputs, order, cluster_input)  # type: ignore[arg-type]


def s1(heads: Sequence[int], *, persistent: int = 2048, feed_forward: int = 0) -> ModelSpec:
    """The geometry of arXiv 2110.03252 on WikiText-103; with `feed_forward` its Transformer-XL baseline."""
    layers = [layer(attention(h, position=Table(512), persistent=persistent, output_bias=True), feed_forward, offset=1.0) for h in heads]
    return model(layers, 512, *adaptive((20000, 20000, 160000, 67735), 512, 4))


def aiha(heads: Sequence[int], *, window: int = 13, segment: int | None = None, persistent: int = 17, **options: bool) -> ModelSpec:
    layers = [
        layer(
            attention(
                h, head_dim=6, position=Table(64), persistent=persistent, window=window, segment=segment, output_bias=True, **options
            ),
            offset=1.0,
        )
        for h in heads
    ]
    return model(layers, 24, *adaptive((20, 11, 34), 24, 2))


def fair(heads: Sequence[int], *, window: int = 31, persistent: int = 7, feed_forward: int = 0, spans: bool = True) -> ModelSpec:
    """FAIR: one table for all, keys exclude the token itself, post-norm."""
    layers = [
        layer(
            attention(
                h,
                head_dim=10,
                position=SharedTable(40),
                persistent=persistent,
                sees_self=False,
                window=window,
                spans=tuple(3.0 * (i + 1) for i in range(h)) if spans else None,
            ),
            feed_forward,
            norm_first=False,
        )
        for h in heads
    ]
    return model(layers, 20, *plain(37, 20))


def transformer_xl(heads: Sequence[int], *, window: int = 63, segment: int | None = None, width: int = 30, bias: bool = False) -> ModelSpec:
    layers = [
        layer(
            attention(h, head_dim=5, position=Sinusoid(), window=window, segment=segment, zeros=False, bias=bias), width, norm_first=False
        )
        for h in heads
    ]
    return model(layers, 16, *adaptive((20, 11, 34), 16, 2, order="descending", cluster_input="projected"))
