"""The native model's own checks: every argument that cannot be is refused by name, and nothing has changed afterwards."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engine_kernels import _native, backends, native
from engine_kernels.errors import KernelError
from engine_kernels.native import NativeModel
from engine_kernels.ops import Visibility
from engine_kernels.shapes import AttentionShape, ClusterShape, EmbeddingShape, HeadShape, LayerShape, by_name

HIDDEN, HEADS, DEPTH, PERSISTENT, REACH = 6, 3, 5, 17, 4
ATTENTION = AttentionShape(HEADS, DEPTH, PERSISTENT, Visibility(REACH, 0, REACH, 0, True), "per_head")
SHAPE = LayerShape(ATTENTION, 7, "relu", True, 1e-5)
PLAIN = ClusterShape(0, 9, HIDDEN, False, 9)
HEAD = HeadShape((PLAIN, ClusterShape(9, 4, 3, True, 9, tied=True)), clusters_read_hidden=True)
EMBEDDING = EmbeddingShape((PLAIN, ClusterShape(9, 4, 3, True, 10)))


def layer_arrays() -> dict[str, np.ndarray]:
    shapes = {
        "attention_norm": (HIDDEN,),
        "attention_norm_bias": (HIDDEN,),
        "feed_forward_norm": (HIDDEN,),
        "feed_forward_norm_bias": (HIDDEN,),
    }
    shapes |= {f"attention.{name}": (HEADS * DEPTH, HIDDEN) for name in ("query", "key", "value")}
    shapes |= {f"attention.persistent_{name}": (HEADS, PERSISTENT, DEPTH) for name in ("keys", "values")}
    shapes |= {f"attention.{name}": (HEADS, DEPTH) for name in ("zero_key", "zero_value")}
    shapes |= {"attention.output": (HIDDEN, HEADS * DEPTH), "attention.distances": (HEADS, REACH, DEPTH)}
    shapes |= {"feed_forward.up": (7, HIDDEN), "feed_forward.down": (HIDDEN, 7)}
    draw = np.random.default_rng(0)
    return {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def embedding_arrays() -> dict[str, np.ndarray]:
    return drawn({"embedding.0": (9, HIDDEN), "embedding.1": (4, 3), "embedding.1.projection": (HIDDEN, 3)})


def head_arrays() -> dict[str, np.ndarray]:
    return drawn({"head.0": (9, HIDDEN), "head.1": (4, 3), "head.1.projection": (HIDDEN, 3), "head.clusters": (1, HIDDEN)})


def drawn(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(1)
    return {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def set_embedding_and_head(model: NativeModel, head: HeadShape = HEAD, embedding: EmbeddingShape = EMBEDDING) -> None:
    model.set_head(head, head_arrays())
    model.set_embedding(embedding, embedding_arrays())


@pytest.fixture
def model() -> NativeModel:
    """One layer, a plain first cluster and one tied tail; slots 0 and 1."""
    model = NativeModel(HIDDEN, "float32", 1)
    model.add_layer(SHAPE, layer_arrays())
    set_embedding_and_head(model)
    model.grow(2)
    model.restart(0)
    model.restart(1)
    return model


def integers(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def test_runs_a_row(model: NativeModel) -> None:
    hidden = model.embed(integers(12))
    assert model.step(hidden, integers(1), integers(0), integers(1)) is None
    model.final_norm(hidden)
    total = np.exp(model.head_log_probs(hidden)).sum()
    assert np.isfinite(hidden).all() and total == pytest.approx(1, abs=1e-5)
    nll = model.target_nll(hidden, integers(11))
    assert nll == pytest.approx(-model.head_log_probs(hidden)[:, 9] - model.tail_log_probs(hidden, 1)[:, 2], abs=1e-5)


def test_tied_rows_are_read_from_the_head(model: NativeModel) -> None:
    expected = head_arrays()["head.1"] @ embedding_arrays()["embedding.1.projection"].T
    np.testing.assert_allclose(model.embed(np.arange(9, 13)), expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(model.embed(np.arange(9)), embedding_arrays()["embedding.0"])


def test_a_tied_projection_is_read_from_the_head() -> None:
    model, tied = NativeModel(HIDDEN, "float32", 1), replace(HEAD.clusters[1], tied_projection=True)
    set_embedding_and_head(model, replace(HEAD, clusters=(PLAIN, tied)))
    expected = head_arrays()["head.1"] @ head_arrays()["head.1.projection"].T
    np.testing.assert_allclose(model.embed(np.arange(9, 13)), expected, rtol=0, atol=1e-5)
    other = NativeModel(HIDDEN, "float32", 1)
    set_embedding_and_head(other)
    assert other.weight_bytes()[0] - model.weight_bytes()[0] == 16 * 3 * 4  # a projection of one panel


@pytest.mark.parametrize(
    ("argument", "said", "work"),
    [
        ("ids", "from 0 to 12", lambda m: m.embed(integers(13))),
        ("ids", "from 0 to 12", lambda m: m.embed(integers(3, -1))),
        ("ids", "int64", lambda m: m.embed(np.array([1.0]))),
        ("ids", "int64", lambda m: m.embed(np.array([1], np.int32))),
        ("ids", "shape [?]", lambda m: m.embed(np.zeros((1, 1), np.int64))),
        ("targets", "or -1", lambda m: m.target_nll(np.zeros((1, HIDDEN), np.float32), integers(13))),
        ("targets", "shape [1]", lambda m: m.target_nll(np.zeros((1, HIDDEN), np.float32), integers(1, 2))),
        ("hidden", "float32", lambda m: m.final_norm(np.zeros((1, HIDDEN)))),
        ("hidden", "shape [?, 6]", lambda m: m.final_norm(np.zeros((1, HIDDEN + 1), np.float32))),
        ("hidden", "contiguous", lambda m: m.final_norm(np.zeros((4, HIDDEN), np.float32)[::2])),
        ("hidden", "may be written", lambda m: m.final_norm(np.frombuffer(bytes(4 * HIDDEN), np.float32).reshape(1, HIDDEN))),
        (
            "hidden",
            "aligned",
            lambda m: m.final_norm(np.frombuffer(bytearray(4 * HIDDEN + 1), np.uint8)[1:].view(np.float32).reshape(1, HIDDEN)),
        ),
        ("slot", "opened", lambda m: m.restart(2)),
        ("slot", "opened", lambda m: m.restart(-1)),
        ("slots", "opened", lambda m: step(m, 1, (2,), (0,), (1,))),
        ("slots", "once", lambda m: step(m, 2, (1, 1), (0, 0), (1, 1))),
        ("starts", "shape [2]", lambda m: step(m, 2, (0, 1), (0,), (1, 1))),
        ("starts", "from 0", lambda m: step(m, 1, (0,), (-1,), (1,))),
        ("lengths", "at least 1", lambda m: step(m, 1, (0, 1), (0, 0), (1, 0))),
        ("lengths", "a sum of 3 rows", lambda m: step(m, 3, (0, 1), (0, 0), (1, 1))),
        ("lengths", "at most all rows", lambda m: step(m, 1, (0,), (0,), (2**62,))),
        (
            "cluster",
            "a tail from 1 to 1",
            lambda m: m._model.tail_log_probs(np.zeros((1, HIDDEN), np.float32), 2, np.zeros((1, 4), np.float32)),
        ),
        (
            "cluster",
            "a tail from 1 to 1",
            lambda m: m._model.tail_log_probs(np.zeros((1, HIDDEN), np.float32), 0, np.zeros((1, 9), np.float32)),
        ),
        ("out", "shape [1, 10]", lambda m: m._model.head_log_probs(np.zeros((1, HIDDEN), np.float32), np.zeros((1, 9), np.float32))),
        (
            "taps",
            "shape [1, 1, 6]",
            lambda m: m._model.step(*[np.zeros((1, HIDDEN), np.float32), *[integers(0)] * 3], np.zeros(6, np.float32)),
        ),
        ("model", "before any slot", lambda m: m.add_layer(SHAPE, layer_arrays())),
    ],
)
def test_a_call_that_cannot_be_is_refused_by_name(model: NativeModel, argument: str, said: str, work: Callable[[NativeModel], Any]) -> None:
    with pytest.raises(KernelError) as caught:
        work(model)
    assert caught.value.argument == argument and said in str(caught.value), str(caught.value)
    test_runs_a_row(model)


def step(model: NativeModel, rows: int, *sequences: tuple[int, ...]) -> None:
    model.step(np.zeros((rows, HIDDEN), np.float32), *(integers(*values) for values in sequences))


@pytest.mark.parametrize("name", [*layer_arrays()])
def test_a_layer_without_an_array_or_with_one_of_another_shape_is_refused_by_its_name(name: str) -> None:
    arrays = layer_arrays()
    for wrong in (
        {**arrays, name: arrays[name][:-1]},
        {**arrays, name: arrays[name][None]},
        {**arrays, name: arrays[name].astype(np.float64)},
    ):
        refused(name, lambda wrong=wrong: NativeModel(HIDDEN, "float32", 1).add_layer(SHAPE, wrong))
    missing = {other: array for other, array in arrays.items() if other != name}
    refused(name, lambda: NativeModel(HIDDEN, "float32", 1).add_layer(SHAPE, missing))


def test_a_refused_layer_leaves_the_model_as_it_was(model: NativeModel) -> None:
    fresh = NativeModel(HIDDEN, "float32", 1)
    refused("surplus", lambda: fresh.add_layer(SHAPE, layer_arrays() | {"surplus": np.zeros(1, np.float32)}))
    fresh.add_layer(SHAPE, layer_arrays())
    surplus = {"surplus": np.zeros(1, np.float32)}
    refused("surplus", lambda: fresh.set_head(HEAD, head_arrays() | surplus))
    refused("model", lambda: fresh.set_embedding(EMBEDDING, embedding_arrays()))
    fresh.set_head(HEAD, head_arrays())
    refused("surplus", lambda: fresh.set_embedding(EMBEDDING, embedding_arrays() | surplus))
    refused("model", lambda: fresh.embed(integers(1)))
    fresh.set_embedding(EMBEDDING, embedding_arrays())
    refused("model", lambda: fresh.set_head(HEAD, head_arrays()))
    fresh.grow(2)
    fresh.restart(1)
    test_runs_a_row(fresh)


@pytest.mark.parametrize(
    ("argument", "attention"),
    [
        ("heads", {"heads": 0}),
        ("head_dim", {"head_dim": 0}),
        ("persistent", {"persistent": -1}),
        ("reach", {"visibility": replace(ATTENTION.visibility, reach=0)}),
        ("reach", {"visibility": replace(ATTENTION.visibility, bidirectional=True)}),
        ("first_distance", {"visibility": replace(ATTENTION.visibility, first_distance=2)}),
        ("segment", {"visibility": replace(ATTENTION.visibility, segment=-1)}),
        ("attention.distances", {"relative": "shared"}),
        ("attention.distances", {"relative": "none"}),
        ("spans", {"spans": (1.0, 2.0), "span_ramp": 3}),
        ("span_ramp", {"spans": (1.0, 2.0, 3.0)}),
    ],
)
def test_an_attention_that_cannot_be_is_refused(argument: str, attention: dict[str, Any]) -> None:
    shape = replace(SHAPE, attention=replace(ATTENTION, **attention))
    refused(argument, lambda: NativeModel(HIDDEN, "float32", 1).add_layer(shape, layer_arrays()))


def test_a_feed_forward_that_cannot_be_is_refused() -> None:
    for argument, shape in (("feed_forward", {"feed_forward": -1}), ("layer.activation", {"activation": "tanhh"})):
        refused(argument, lambda shape=shape: NativeModel(HIDDEN, "float32", 1).add_layer(replace(SHAPE, **shape), layer_arrays()))


@pytest.mark.parametrize(
    ("argument", "head", "embedding"),
    [
        ("embedding", HEAD, EmbeddingShape(())),
        ("embedding", HEAD, EmbeddingShape(EMBEDDING.clusters[:1])),
        ("embedding", HEAD, EmbeddingShape(EMBEDDING.clusters[::-1])),
        ("head", replace(HEAD, clusters=HEAD.clusters[::-1]), EMBEDDING),
        ("head.0", replace(HEAD, clusters=(replace(PLAIN, width=5), HEAD.clusters[1])), EMBEDDING),
        ("head", replace(HEAD, clusters=(PLAIN, replace(HEAD.clusters[1], entry=10))), EMBEDDING),
        ("head", replace(HEAD, clusters=(PLAIN, replace(HEAD.clusters[1], projected=False))), EMBEDDING),
        ("final_norm", replace(HEAD, final_norm_eps=1e-5), EMBEDDING),
        ("head.transform", replace(HEAD, transform="gelu"), EMBEDDING),
        ("head.transform", replace(HEAD, transform="sigmoid"), EMBEDDING),
        ("head.labels", replace(HEAD, labels=2), EMBEDDING),
        ("embedding.positions", HEAD, replace(EMBEDDING, positions=3)),
        ("embedding.norm", HEAD, replace(EMBEDDING, norm_eps=1e-5)),
    ],
)
def test_a_head_or_an_embedding_that_cannot_be_is_refused(argument: str, head: HeadShape, embedding: EmbeddingShape) -> None:
    refused(argument, lambda: set_embedding_and_head(NativeModel(HIDDEN, "float32", 1), head, embedding))


@pytest.mark.parametrize(
    ("shape", "at"),
    [
        (SHAPE, "layer"),
        (ATTENTION, "layer.attention"),
        (ATTENTION.visibility, "layer.attention.visibility"),
        (HEAD, "head"),
        (PLAIN, "head.clusters[0]"),
        (EMBEDDING, "embedding"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_field_missing_on_one_side_is_refused_by_its_name(shape: Any, at: str) -> None:
    """Fields that Python has and native code has not, and the other way round, in every shape and the shapes within it."""

    def told(change: Callable[[dict[str, Any]], None]) -> None:
        given = {"layer": by_name(SHAPE, LayerShape), "head": by_name(HEAD, HeadShape), "embedding": by_name(EMBEDDING, EmbeddingShape)}
        inner: Any = given
        for step in at.replace("[0]", "").split("."):
            inner = inner[step][0] if step == "clusters" else inner[step]
        change(inner)
        model = _native.NativeModel(HIDDEN, 0, False, 1)
        model.add_layer(given["layer"], layer_arrays())
        model.set_head(given["head"], head_arrays())
        model.set_embedding(given["embedding"], embedding_arrays())

    told(lambda fields: None)
    for name in by_name(shape, type(shape)):
        assert "expected a value, got nothing" in refused(f"{at}.{name}", lambda name=name: told(lambda fields: fields.__delitem__(name)))
        refused(f"{at}.{name}", lambda name=name: told(lambda fields: fields.__setitem__(name, object())))
    assert "no such field" in refused(f"{at}.planted", lambda: told(lambda fields: fields.__setitem__("planted", 3)))


@pytest.mark.parametrize(
    ("argument", "given"), [("hidden", (0, "float32", 1)), ("dtype", (4, "float16", 1)), ("threads", (4, "float32", 5000))]
)
def test_a_model_that_cannot_be_is_refused(argument: str, given: tuple[int, str, int]) -> None:
    refused(argument, lambda: NativeModel(*given))


def test_threads_default_to_what_the_process_may_use() -> None:
    assert NativeModel(4, "float32", None).threads == len(os.sched_getaffinity(0))


def test_the_module_and_the_table_name_the_instruction_set() -> None:
    assert native.instruction_set() == _native.instruction_set() in ("generic", "avx2", "avx512", "avx512_bf16", "amx", "emulated")
    assert backends.resolve("cpu", backends.Wanted()).name == "cpu"
    assert "float16" in refused("backend", lambda: backends.resolve("cpu", backends.Wanted("cpu", "float16")))
    assert "cuda:1" in refused("backend", lambda: backends.resolve("cpu", backends.Wanted("cuda:1")))
    assert backends.resolve("auto", backends.Wanted()).name == "cpu"


def test_auto_is_bfloat16_where_the_processor_multiplies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert native.preferred_dtype() == "float32"  # tests/conftest.py
    assert backends.preferred_dtype("cpu") == ("float32", f"auto: {native.instruction_set()} multiplies bfloat16 no faster")
    monkeypatch.setattr(native, "_MULTIPLIES_BFLOAT16", (native.instruction_set(),))
    assert native.preferred_dtype() == "bfloat16"
    assert backends.preferred_dtype("cpu")[1] == f"auto: {native.instruction_set()} multiplies it directly; float32 is the exact path"
    assert backends.preferred_dtype("torch")[0] == "float32"


def refused(argument: str, work: Callable[[], Any]) -> str:
    with pytest.raises(KernelError) as caught:
        work()
    assert caught.value.argument == argument, str(caught.value)
    return str(caught.value)
