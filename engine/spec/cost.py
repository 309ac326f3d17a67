"""What a model costs, from its spec alone: FLOPs, parameters, weight bytes, key/value bytes and activations, per layer and per part."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from engine.errors import InputError, Problem
from engine.spec import Labels, ModelSpec
from engine.spec.cost_parts import NONE, PARTS, Flops, Work, activation_numbers, embedding_flops, head_flops, layer_flops, part_of

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
QUANTIZED = re.compile(  # the tensors int8 weights stand in for: what is multiplied with and not looked up
    r"layers\.\d+\.(attention\.(query|key|value|output|persistent_keys|persistent_values)|feed_forward\.(up|down))"
    r"|embedding\.\d+\.projection|head\.(\d+|\d+\.projection|clusters)"
)
ACTIVATION_BYTES = 4  # activations are float32 whatever the weights are
CONSTANTS = ("position.frequencies",)  # stored with the weights, not learned


@dataclass(frozen=True)
class PartCost:
    """A part of a layer or of the model: its stored numbers and its FLOPs for the prefill and for one decoded token (whole batch)."""

    name: str
    parameters: int
    weight_bytes: int
    prefill: Flops
    decode: Flops

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class LayerCost:
    """One layer: `parts` add up to it; key/value bytes are of one sequence, activation bytes of the whole batch's prefill."""

    index: int
    heads: int
    source_heads: int
    parts: tuple[PartCost, ...]
    kv_bytes_per_token: int
    kv_bytes: int
    activation_bytes: int

    @property
    def total(self) -> PartCost:
        return add_parts(f"layers.{self.index}", self.parts)

    @property
    def parameters(self) -> int:
        return self.total.parameters

    @property
    def weight_bytes(self) -> int:
        return self.total.weight_bytes

    @property
    def prefill(self) -> Flops:
        return self.total.prefill

    @property
    def decode(self) -> Flops:
        return self.total.decode

    def to_dict(self) -> dict[str, object]:
        fields = {
            name: getattr(self, name) for name in ("index", "heads", "source_heads", "kv_bytes_per_token", "kv_bytes", "activation_bytes")
        }
        return fields | _numbers(self.total) | {"parts": {part.name: _numbers(part) for part in self.parts}}


@dataclass(frozen=True)
class Cost:
    """A whole model: `layers`, then `outside` them the embedding, the vocabulary, shared distances and the final norm.

    FLOPs are of `batch` sequences: the prefill of `rows` tokens each from the start of a stream, and one decoded token each far from it.
    kv_bytes: what one sequence's cache holds; each token adds kv_bytes_per_token to it until the window is full.
    activation_bytes: the prefill's peak in float32, an estimate: the residual stream twice + the most of any layer or of the softmax.
    """

    spec: ModelSpec
    dtype: str
    quantization: str | None
    rows: int
    batch: int
    tile_rows: int
    token_counts: tuple[float, ...] | None
    layers: tuple[LayerCost, ...]
    outside: tuple[PartCost, ...]
    activation_bytes: int

    @property
    def parts(self) -> tuple[PartCost, ...]:
        """The whole model by part, in the order of execution, layers added up."""
        named = defaultdict(list)
        for part in [p for layer in self.layers for p in layer.parts] + list(self.outside):
            named[part.name].append(part)
        return tuple(add_parts(name, named[name]) for name in PARTS)

    @property
    def total(self) -> PartCost:
        return add_parts("total", self.parts)

    @property
    def parameters(self) -> int:
        """Learned numbers of the checkpoint; tied ones count once."""
        return self.total.parameters

    @property
    def weight_bytes(self) -> int:
        """Bytes of every stored tensor in `dtype`, or in int8 with a float32 scale per row, constants included."""
        return self.total.weight_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        return sum(layer.kv_bytes_per_token for layer in self.layers)

    @property
    def kv_bytes(self) -> int:
        return sum(layer.kv_bytes for layer in self.layers)

    @property
    def decode(self) -> Flops:
        """One token of every sequence, far from the start: the same at every position."""
        return self.total.decode

    def prefill(self, rows: int | None = None) -> Flops:
        """`rows` tokens of every sequence from the start of a stream (None = this cost's own number)."""
        if rows is None or rows == self.rows:
            return self.total.prefill
        again = model_cost(
            self.spec, dtype=self.dtype, rows=rows, batch=self.batch, tile_rows=self.tile_rows, token_counts=self.token_counts
        )
        return again.total.prefill

    def to_dict(self) -> dict[str, object]:
        settings = {name: getattr(self, name) for name in ("dtype", "quantization", "rows", "batch", "tile_rows", "token_counts")}
        memory = {name: getattr(self, name) for name in ("kv_bytes_per_token", "kv_bytes", "activation_bytes")}
        return {
            "settings": settings,
            "total": _numbers(self.total) | memory,
            "parts": {part.name: _numbers(part) for part in self.parts},
            "layers": [layer.to_dict() for layer in self.layers],
        }


def model_cost(
    spec: ModelSpec,
    *,
    dtype: str = "float32",
    quantization: str | None = None,
    rows: int = 192,
    batch: int = 1,
    tile_rows: int = 64,
    token_counts: Sequence[float] | None = None,
) -> Cost:
    """The cost of `batch` sequences of `rows` tokens, and of one decoded token each, for weights and caches of `dtype`.

    quantization: None, or int8 for the matrices that are multiplied with and no embedding.

    tile_rows: query rows of one attention block, the geometry `executed` counts.  token_counts: tokens of the text per embedding cluster,
    for the projections of an adaptive input; by default every token is in the first cluster.  Raises InputError with every bad argument.
    """
    _check(spec, dtype, quantization, rows, batch, tile_rows, token_counts)
    size, prefill, decode = BYTES[dtype], Work(rows, tile_rows), Work(1, 1, context=rows)
    stored = _stored(spec, size, quantization)
    layers = tuple(_layer_cost(spec, index, batch, size, prefill, decode, stored[index]) for index in range(len(spec.layers)))
    outside_prefill = _outside_flops(spec, rows, token_counts)
    outside_decode = _outside_flops(spec, 1, token_counts)
    inside = max((layer.activation_bytes for layer in layers), default=0)
    return Cost(
        spec=spec,
        dtype=dtype,
        quantization=quantization,
        rows=rows,
        batch=batch,
        tile_rows=tile_rows,
        token_counts=None if token_counts is None else tuple(token_counts),
        layers=layers,
        outside=_parts(outside_prefill, outside_decode, batch, stored[-1]),
        activation_bytes=2 * batch * rows * spec.hidden * ACTIVATION_BYTES + max(inside, _output_bytes(spec, batch * rows)),
    )


def add_parts(name: str, parts: Iterable[PartCost]) -> PartCost:
    """One part that holds the sum of `parts`."""
    total = PartCost(name, 0, 0, NONE, NONE)
    for p in parts:
        total = PartCost(
            name,
            total.parameters + p.parameters,
            total.weight_bytes + p.weight_bytes,
            total.prefill + p.prefill,
            total.decode + p.decode,
        )
    return total


Stored = dict[str, tuple[int, int]]  # part → parameters, bytes


def _stored(spec: ModelSpec, size: int, quantization: str | None) -> dict[int, Stored]:
    """Layer index → part → parameters and bytes; -1 is what stands outside the layers."""
    stored: dict[int, Stored] = {index: {} for index in range(-1, len(spec.layers))}
    for name, shape in spec.tensors().items():
        index, part, numbers = int(name.split(".")[1]) if name.startswith("layers.") else -1, part_of(name), math.prod(shape)
        parameters, weight_bytes = stored[index].get(part, (0, 0))
        bytes_here = numbers * size
        if quantization is not None and QUANTIZED.fullmatch(name):
            bytes_here = numbers + 4 * (numbers // shape[1 if name.endswith("persistent_values") else -1] if numbers else 0)
        stored[index][part] = (parameters + (0 if name in CONSTANTS else numbers), weight_bytes + bytes_here)
    return stored


def _layer_cost(spec: ModelSpec, index: int, batch: int, size: int, prefill: Work, decode: Work, stored: Stored) -> LayerCost:
    layer = spec.layers[index]
    a = layer.attention
    kv_bytes_per_token = 2 * a.kv_heads * a.head_dim * size if a.causal else 0  # an encoder keeps nothing
    return LayerCost(
        index=index,
        heads=a.heads,
        source_heads=a.source_heads,
        parts=_parts(layer_flops(layer, spec.hidden, prefill), layer_flops(layer, spec.hidden, decode), batch, stored),
        kv_bytes_per_token=kv_bytes_per_token,
        kv_bytes=kv_bytes_per_token * (prefill.rows if a.reach is None else a.reach),
        activation_bytes=activation_numbers(layer, batch, prefill) * ACTIVATION_BYTES,
    )


def _outside_flops(spec: ModelSpec, rows: int, token_counts: Sequence[float] | None) -> dict[str, Flops]:
    return {"embedding": embedding_flops(spec.embedding, spec.hidden, rows, token_counts), "vocabulary": head_flops(spec, rows)}


def _parts(prefill: dict[str, Flops], decode: dict[str, Flops], batch: int, stored: Stored) -> tuple[PartCost, ...]:
    return tuple(
        PartCost(name, *stored.get(name, (0, 0)), prefill.get(name, NONE) * batch, decode.get(name, NONE) * batch)
        for name in PARTS
        if name in prefill or name in stored
    )


def _output_bytes(spec: ModelSpec, rows: int) -> int:
    labels = spec.head.labels if isinstance(spec.head, Labels) else spec.vocab if spec.head else 0
    return 2 * rows * labels * ACTIVATION_BYTES


def _numbers(part: PartCost) -> dict[str, object]:
    return {name: value for name, value in asdict(part).items() if name != "name"}


def _check(
    spec: ModelSpec, dtype: str, quantization: str | None, rows: int, batch: int, tile_rows: int, token_counts: Sequence[float] | None
) -> None:
    problems = []
    if dtype not in BYTES:
        problems.append(Problem("dtype", " or ".join(BYTES), repr(dtype)))
    if quantization not in (None, "int8"):
        problems.append(Problem("quantization", "None or int8", repr(quantization)))
    for name, value in {"rows": rows, "batch": batch, "tile_rows": tile_rows}.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            problems.append(Problem(name, "a positive integer", repr(value)))
    clusters = len(spec.embedding.clusters)
    if token_counts is not None and not (
        len(token_counts) == clusters and all(math.isfinite(count) and count >= 0 for count in token_counts) and sum(token_counts) > 0
    ):
        problems.append(Problem("token_counts", f"{clusters} counts, one per embedding cluster, not all zero", repr(list(token_counts))))
    if problems:
        raise InputError(problems)


def inside(cost: Cost) -> PartCost:
    """All layers together, without embedding and vocabulary."""
    return add_parts("layers", (layer.total for layer in cost.layers))


def outside(cost: Cost) -> PartCost:
    """Embedding, vocabulary, shared distances and final norm."""
    return add_parts("outside", cost.outside)
