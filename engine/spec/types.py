"""The frozen description of a head-pruned Transformer: one type that every converter ends in and every backend starts from.

Heads are a tuple of kept head NUMBERS of the source model per layer, never a count shared by the model. A variant the types can say and
nothing implements yet is refused at load by its name (`model/plan.py`), never left out of the types.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from engine.errors import Problem, SpecMismatch
from engine.spec.fields import from_json, to_json, variant

FORMAT_VERSION = 1


@variant
@dataclass(frozen=True)
class Table:
    """Learned rows by distance, projected per layer: r = table · relativeᵀ, with content and position biases (arXiv 2110.03252)."""

    rows: int


@variant
@dataclass(frozen=True)
class Sinusoid:
    """Sine and cosine halves by distance, projected per layer, with content and position biases (arXiv 1901.02860)."""

    clamp: int | None = None  # distances beyond it are treated as it


@variant
@dataclass(frozen=True)
class SharedTable:
    """Learned rows by distance used as they are by every head and layer (arXiv 1905.07799)."""

    rows: int


@variant
@dataclass(frozen=True)
class Absolute:
    """Positions are added to the embedding; attention itself knows none."""


@variant
@dataclass(frozen=True)
class Rotary:
    """Rotation of query and key pairs by position."""

    base: float = 10000.0
    width: int | None = None  # rotated dimensions of a head, all when None


@variant
@dataclass(frozen=True)
class Alibi:
    """A slope per head times the distance, added to the score."""


Position = Table | Sinusoid | SharedTable | Absolute | Rotary | Alibi
Activation = Literal["relu", "gelu", "gelu_tanh", "quick_gelu", "silu"]  # gelu is exact (erf), gelu_tanh its usual approximation

Pooler = Literal["tanh", "relu", "gelu"]  # of the dense layer before the labels of a whole sequence


@dataclass(frozen=True)
class AttentionSpec:
    """One layer's attention after pruning.

    kept: numbers of the kept heads in the source model, ascending; empty is legal.
    kv_of: for each kept head its key/value head.
    window: keys visible to a token (itself included if sees_self), None = all; with `segment`, to the first token of a
        segment of that many tokens, each later token of it seeing one more.
    start: what stands before the first token: rows of zeros that are projected and attended, or nothing.
    spans: per kept head the adaptive span in tokens (z · maximum), its ramp `span_ramp` tokens long.
    """

    source_heads: int
    kept: tuple[int, ...]
    kv_of: tuple[int, ...]
    head_dim: int
    position: Position | None
    persistent: int
    causal: bool
    sees_self: bool
    window: int | None
    segment: int | None
    start: Literal["attended_zeros", "empty"]
    spans: tuple[float, ...] | None
    span_ramp: int | None
    bias: bool  # on query, key, value and the relative projection
    output_bias: bool
    scaled: bool  # a head_scale [heads] multiplies each head's output
    score_scale: float = 1.0  # a factor on the scores besides 1 / √head_dim

    @property
    def heads(self) -> int:
        return len(self.kept)

    @property
    def kv_heads(self) -> int:
        return max(self.kv_of) + 1 if self.kv_of else 0

    @property
    def reach(self) -> int | None:
        """The most keys any token sees: the window, and with segments the tokens of its own segment before it."""
        return None if self.window is None else self.window + ((self.segment or 1) - 1)

    @property
    def relative(self) -> bool:
        """Whether the layer projects distances itself and holds content and position biases."""
        return isinstance(self.position, (Table, Sinusoid))


@dataclass(frozen=True)
class FeedForward:
    """down(activation(up(x))), or down(activation(gate(x)) · up(x)) when gated."""

    width: int
    activation: Activation
    gated: bool
    bias: bool


@dataclass(frozen=True)
class LayerSpec:
    """Attention and an optional feed-forward, each with a residual and a norm before (norm_first) or after it."""

    attention: AttentionSpec
    feed_forward: FeedForward | None
    norm: Literal["layer", "rms"]
    norm_first: bool
    norm_eps: float
    norm_offset: float  # gain = norm_offset + stored weight: 1 for aiha-lab, else 0


@dataclass(frozen=True)
class Cluster:
    """A run of `size` consecutive token ids with rows of `width` numbers, projected to the hidden size or used as they are."""

    size: int
    width: int
    projected: bool


@dataclass(frozen=True)
class Embedding:
    """Input side: row of the token's cluster, projected, times `scale`; encoders add positions, token types and a norm.

    A token at place p of its sequence reads row p + position_offset of `positions`. position_pad: tokens of that id do not count as a place
    and read row position_offset - 1 (XLM-R).
    """

    clusters: tuple[Cluster, ...]
    scale: float
    positions: int = 0
    position_offset: int = 0
    token_types: int = 0
    norm: bool = False
    position_pad: int | None = None

    @property
    def most_tokens(self) -> int | None:
        """Tokens a sequence may have, as many as there are positions; None = any number."""
        return self.positions - self.position_offset if self.positions else None


@dataclass(frozen=True)
class OutputCluster:
    """A cluster of the output side; `tied` rows and `tied_projection` are the embedding's own tensors, not stored again."""

    size: int
    width: int
    projected: bool
    tied: bool
    tied_projection: bool


@variant
@dataclass(frozen=True)
class Vocabulary:
    """Softmax over the vocabulary: plain with one cluster, adaptive with more.

    The first cluster's softmax also holds one entry per further cluster, ascending (aiha-lab) or descending (FAIR, Transformer-XL);
    those entries read the raw hidden state (aiha-lab) or the first cluster's projection of it. transform: hidden states first go through a
    dense layer, this activation and a norm (masked language models).
    """

    clusters: tuple[OutputCluster, ...]
    order: Literal["ascending", "descending"]
    cluster_input: Literal["hidden", "projected"]
    bias: bool = True
    transform: Activation | None = None


@variant
@dataclass(frozen=True)
class Labels:
    """Task head of an encoder: `labels` classes per token, or of the first token, through a dense layer with activation `pooler`."""

    labels: int
    pooled: bool
    pooler: Pooler | None = None


Shapes = dict[str, tuple[int, ...]]
Task = Literal["causal_lm", "masked_lm", "token_classification", "sequence_classification", "hidden"]


@dataclass(frozen=True)
class ModelSpec:
    """A whole model. `tensors()` is every tensor a checkpoint of it must hold, and no other."""

    hidden: int
    vocab: int
    layers: tuple[LayerSpec, ...]
    embedding: Embedding
    head: Vocabulary | Labels | None
    task: Task
    final_norm: bool = False
    version: int = FORMAT_VERSION

    def to_dict(self) -> dict[str, object]:
        result: dict[str, object] = to_json(self)
        return result

    @staticmethod
    def from_dict(value: object, *, source: str | None = None) -> ModelSpec:
        """Read the JSON form; raises SpecMismatch with every unknown, missing, ill-typed or contradictory field."""
        problems: list[Problem] = []
        spec = from_json(ModelSpec, value, "spec", problems)
        if spec is not None:
            problems.extend(spec.problems())
        if spec is None or problems:
            raise SpecMismatch(problems, source=source)
        return spec

    def check(self, *, source: str | None = None) -> ModelSpec:
        """Return self; raises SpecMismatch with every contradiction."""
        if problems := self.problems():
            raise SpecMismatch(problems, source=source)
        return self

    def problems(self) -> list[Problem]:
        from engine.spec.check import spec_problems  # the rules read better apart from the types

        return list(spec_problems(self))

    def with_kept(self, kept: tuple[tuple[int, ...], ...]) -> ModelSpec:
        """The same model with other head numbers per layer; identity key/value heads only."""
        layers = tuple(
            replace(layer, attention=replace(layer.attention, kept=k, kv_of=tuple(range(len(k)))))
            for layer, k in zip(self.layers, kept, strict=True)
        )
        return replace(self, layers=layers)

    def tensors(self) -> Shapes:
        """Name → shape, in the order of execution."""
        shapes: Shapes = dict(_embedding_tensors(self))
        shapes.update(_position_tensors(self))
        for index, layer in enumerate(self.layers):
            shapes.update((f"layers.{index}.{name}", shape) for name, shape in _layer_tensors(layer, self.hidden))
        if self.final_norm and self.layers:
            shapes.update(_norm_tensors("final_norm", self.layers[-1], self.hidden))
        shapes.update(_head_tensors(self))
        return shapes

    def tied_source(self, cluster: int) -> tuple[str, int, int]:
        """The embedding tensor and its row range [start, stop) that a tied output cluster reads."""
        assert isinstance(self.head, Vocabulary)
        first = sum(c.size for c in self.head.clusters[:cluster])
        start = 0
        for index, c in enumerate(self.embedding.clusters):
            if start <= first < start + c.size:
                return f"embedding.{index}", first - start, first - start + self.head.clusters[cluster].size
            start += c.size
        raise AssertionError("checked by spec_check: clusters cover the vocabulary")

    def note(self, tensor: str) -> str:
        """Why a tensor has the shape it has, for error texts: '5 kept heads × 64'; empty when nothing needs saying."""
        parts = tensor.split(".")
        if len(parts) < 4 or parts[2] != "attention" or parts[3] in ("output_bias",):
            return ""
        a = self.layers[int(parts[1])].attention
        return f"{a.heads} kept heads × {a.head_dim}"


def _embedding_tensors(spec: ModelSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    e = spec.embedding
    for index, c in enumerate(e.clusters):
        yield f"embedding.{index}", (c.size, c.width)
        if c.projected:
            yield f"embedding.{index}.projection", (spec.hidden, c.width)
    if e.positions:
        yield "embedding.positions", (e.positions, spec.hidden)
    if e.token_types:
        yield "embedding.token_types", (e.token_types, spec.hidden)
    if e.norm:
        yield "embedding.norm", (spec.hidden,)
        yield "embedding.norm_bias", (spec.hidden,)


def _position_tensors(spec: ModelSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Row i of a table is distance i where a token sees itself, else distance i + 1."""
    if not spec.layers:
        return
    a = spec.layers[0].attention
    if isinstance(a.position, Table):
        yield "position.table", (a.position.rows, spec.hidden)
    elif isinstance(a.position, SharedTable):
        yield "position.table", (a.position.rows, a.head_dim)
    elif isinstance(a.position, Sinusoid):
        yield "position.frequencies", (spec.hidden // 2,)


def _layer_tensors(layer: LayerSpec, hidden: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    a = layer.attention
    yield from _norm_tensors("attention_norm", layer, hidden)
    if a.heads:
        rows, kv_rows = a.heads * a.head_dim, a.kv_heads * a.head_dim
        sizes = {"query": rows, "key": kv_rows, "value": kv_rows} | ({"relative": rows} if a.relative else {})
        for name, size in sizes.items():
            yield f"attention.{name}", (size, hidden)
            if a.bias:
                yield f"attention.{name}_bias", (size,)
        if a.relative:
            yield "attention.content_bias", (a.heads, a.head_dim)
            yield "attention.position_bias", (a.heads, a.head_dim)
        if a.persistent:
            yield "attention.persistent_keys", (a.heads, a.persistent, a.head_dim)
            yield "attention.persistent_values", (a.heads, a.persistent, a.head_dim)
        if a.scaled:
            yield "attention.head_scale", (a.heads,)
        yield "attention.output", (hidden, rows)
    if a.output_bias:
        yield "attention.output_bias", (hidden,)
    f = layer.feed_forward
    if f is not None:
        yield from _norm_tensors("feed_forward_norm", layer, hidden)
        for name in ("gate", "up") if f.gated else ("up",):
            yield f"feed_forward.{name}", (f.width, hidden)
            if f.bias:
                yield f"feed_forward.{name}_bias", (f.width,)
        yield "feed_forward.down", (hidden, f.width)
        if f.bias:
            yield "feed_forward.down_bias", (hidden,)


def _norm_tensors(name: str, layer: LayerSpec, hidden: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield name, (hidden,)
    if layer.norm == "layer":
        yield f"{name}_bias", (hidden,)


def _head_tensors(spec: ModelSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    """A projection is [hidden, width] and used as hidden · projection, the embedding's layout, so that tying needs no transpose."""
    head = spec.head
    if isinstance(head, Vocabulary):
        if head.transform is not None:
            yield "head.transform", (spec.hidden, spec.hidden)
            for name in ("head.transform_bias", "head.transform_norm", "head.transform_norm_bias"):
                yield name, (spec.hidden,)
        for index, c in enumerate(head.clusters):
            if not c.tied:
                yield f"head.{index}", (c.size, c.width)
            if head.bias:
                yield f"head.{index}.bias", (c.size,)
            if c.projected and not c.tied_projection:
                yield f"head.{index}.projection", (spec.hidden, c.width)
        if tails := len(head.clusters) - 1:
            yield "head.clusters", (tails, spec.hidden if head.cluster_input == "hidden" else head.clusters[0].width)
            if head.bias:
                yield "head.clusters_bias", (tails,)
    elif isinstance(head, Labels):
        if head.pooler is not None:
            yield "head.pooler", (spec.hidden, spec.hidden)
            yield "head.pooler_bias", (spec.hidden,)
        yield "head.labels", (head.labels, spec.hidden)
        yield "head.labels_bias", (head.labels,)
