"""The spec's JSON form, its rules and the tensors it declares."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from engine.errors import Problem, SpecMismatch
from engine.spec import Alibi, Cluster, Embedding, ModelSpec, Rotary, SharedTable, Sinusoid, Table, Vocabulary
from engine.spec.fields import from_json, to_json, variant
from tests.support.store_cases import DIALECTS, random_spec


def problems_of(value: object) -> list[str]:
    with pytest.raises(SpecMismatch) as caught:
        ModelSpec.from_dict(value)
    return [str(problem) for problem in caught.value.problems]


# Round trip


@pytest.mark.parametrize("seed", range(40))
def test_json_and_back(seed: int) -> None:
    spec = random_spec(seed).check()
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert hash(spec) == hash(ModelSpec.from_dict(spec.to_dict()))


@pytest.mark.parametrize("position", [Rotary(), Rotary(base=5e5, width=2), Alibi(), None], ids=str)
def test_variants_nothing_runs_yet_can_be_said(position: Any) -> None:
    spec = random_spec(0, "encoder")
    spec = replace(spec, layers=tuple(replace(layer, attention=replace(layer.attention, position=position)) for layer in spec.layers))
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.check().to_dict()))) == spec


def test_grouped_key_value_heads_can_be_said() -> None:
    spec = next(s for s in map(lambda seed: random_spec(seed, "encoder"), range(50)) if s.layers[0].attention.heads == 7)
    first, *rest = spec.layers
    a = replace(first.attention, kv_of=(0, 0, 0, 1, 1, 2, 2))
    spec = replace(spec, layers=(replace(first, attention=a), *rest)).check()
    assert (a.heads, a.kv_heads) == (7, 3)
    assert spec.tensors()["layers.0.attention.key"] == (3 * a.head_dim, spec.hidden)
    assert spec.tensors()["layers.0.attention.query"] == (7 * a.head_dim, spec.hidden)


# Ill-formed JSON


def test_unknown_missing_and_ill_typed_fields_together() -> None:
    value = copy.deepcopy(random_spec(0, "aiha").to_dict())
    layer: Any = value["layers"][0]  # type: ignore[index]
    value["hiden"] = 3
    del value["vocab"]
    layer["attention"]["window"] = "193"
    layer["attention"]["kept"] = [0, 1.0, True]
    layer["attention"]["start"] = "zeros"
    layer["attention"]["position"] = {"kind": "Tabel", "rows": 3}
    layer["norm_eps"] = "small"
    layer["norm_first"] = 1
    value["embedding"] = []
    assert problems_of(value) == [
        "spec.hiden: expected no such field, found 3",
        "spec.vocab: expected a value, found nothing",
        "spec.layers[0].attention.kept[1]: expected an integer, found 1.0",
        "spec.layers[0].attention.kept[2]: expected an integer, found True",
        "spec.layers[0].attention.position.kind: expected Absolute or Alibi or Rotary or SharedTable or Sinusoid or Table, found 'Tabel'",
        "spec.layers[0].attention.window: expected an integer, found '193'",
        "spec.layers[0].attention.start: expected 'attended_zeros' or 'empty', found 'zeros'",
        "spec.layers[0].norm_first: expected true or false, found 1",
        "spec.layers[0].norm_eps: expected a number, found 'small'",
        "spec.embedding: expected an object, found []",
    ]


@pytest.mark.parametrize("value", [None, [], 3, "spec", {}])
def test_what_is_no_spec_at_all(value: object) -> None:
    assert problems_of(value)


@pytest.mark.parametrize("value", [2**31, -(2**31), 10**40])
def test_integers_no_model_has(value: int) -> None:
    assert problems_of({**random_spec(0).to_dict(), "hidden": value})[0].startswith("spec.hidden: expected an integer of at most")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e31, 10**400])
def test_numbers_no_model_has(value: float) -> None:
    spec: Any = copy.deepcopy(random_spec(0).to_dict())
    spec["embedding"]["scale"] = value
    assert problems_of(spec)[0].startswith("spec.embedding.scale: expected a finite number")


def test_defaults_may_be_left_out_and_versions_may_not_differ() -> None:
    value = random_spec(0).to_dict()
    spec = ModelSpec.from_dict({name: item for name, item in value.items() if name not in ("version", "final_norm")})
    assert (spec.version, spec.final_norm) == (1, False)
    assert problems_of({**value, "version": 2}) == ["spec.version: expected 1 (the format this Headcount reads), found 2"]


@variant
@dataclass(frozen=True)
class Left:
    size: int


@variant
@dataclass(frozen=True)
class Right:
    size: int = 3


@dataclass(frozen=True)
class Fork:
    way: Left | Right | None
    ways: tuple[Left | Right, ...] = ()
    share: float = 0.5


def test_fields_tell_variants_of_one_shape_apart() -> None:
    fork = Fork(Left(1), (Right(1), Left(2)), 1.0)
    assert to_json(fork) == {
        "way": {"kind": "Left", "size": 1},
        "ways": [{"kind": "Right", "size": 1}, {"kind": "Left", "size": 2}],
        "share": 1.0,
    }
    problems: list[Problem] = []
    assert from_json(Fork, to_json(fork), "fork", problems) == fork
    read = from_json(Fork, {"way": None, "share": 1}, "fork", problems)
    assert read == Fork(None, (), 1.0) and isinstance(read.share, float) and not problems
    assert from_json(Fork, {"way": {"size": 1}}, "fork", problems) is None
    assert from_json(Fork, {"way": {"kind": ["Left"]}}, "fork", problems) is None
    assert [p.where for p in problems] == ["fork.way.kind"] * 2


# Contradictions


def changed(spec: ModelSpec, layer: int = 0, **fields: Any) -> ModelSpec:
    layers = list(spec.layers)
    layers[layer] = replace(layers[layer], attention=replace(layers[layer].attention, **fields))
    return replace(spec, layers=tuple(layers))


def wheres(spec: ModelSpec) -> set[str]:
    return {problem.where for problem in spec.problems()}


ATTENTION = "layers.0.attention"


@pytest.mark.parametrize(
    ("dialect", "fields", "where"),
    [
        ("aiha", {"kept": (1, 0), "kv_of": (0, 1)}, f"{ATTENTION}.kept"),
        ("aiha", {"kept": (1, 1), "kv_of": (0, 1)}, f"{ATTENTION}.kept"),
        ("aiha", {"kept": (8,), "kv_of": (0,)}, f"{ATTENTION}.kept"),
        ("aiha", {"kept": (-1,), "kv_of": (0,)}, f"{ATTENTION}.kept"),
        ("aiha", {"kept": (1, 5), "kv_of": (0,)}, f"{ATTENTION}.kv_of"),
        ("aiha", {"kept": (1, 5), "kv_of": (0, 2)}, f"{ATTENTION}.kv_of"),
        ("aiha", {"kept": (1, 5), "kv_of": (0, 2**31 - 1)}, f"{ATTENTION}.kv_of"),
        ("aiha", {"kept": (1, 5), "kv_of": (-1, 0)}, f"{ATTENTION}.kv_of"),
        ("aiha", {"head_dim": 0}, f"{ATTENTION}.head_dim"),
        ("aiha", {"source_heads": 0}, f"{ATTENTION}.source_heads"),
        ("aiha", {"persistent": -1}, f"{ATTENTION}.persistent"),
        ("aiha", {"window": 0}, f"{ATTENTION}.window"),
        ("aiha", {"window": 2**30}, f"{ATTENTION}.window"),
        ("aiha", {"window": None}, f"{ATTENTION}.window"),
        ("aiha", {"window": 90}, f"{ATTENTION}.window"),
        ("aiha", {"window": 60, "segment": 90}, f"{ATTENTION}.window"),
        ("aiha", {"segment": 0}, f"{ATTENTION}.segment"),
        ("fair", {"segment": 2}, f"{ATTENTION}.segment"),
        ("fair", {"spans": None, "span_ramp": 3}, f"{ATTENTION}.span_ramp"),
        ("fair", {"spans": (1.0,) * 9, "span_ramp": 3}, f"{ATTENTION}.spans"),
        ("fair", {"kept": (2,), "kv_of": (0,), "spans": (float("nan"),), "span_ramp": 3}, f"{ATTENTION}.spans"),
        ("fair", {"kept": (2,), "kv_of": (0,), "spans": (1.0,), "span_ramp": 0}, f"{ATTENTION}.span_ramp"),
        ("txl", {"position": Sinusoid(clamp=0)}, f"{ATTENTION}.position"),
    ],
)
def test_contradictions_of_attention(dialect: str, fields: dict[str, Any], where: str) -> None:
    assert where in wheres(changed(random_spec(6, dialect), **fields))


def test_contradictions_of_the_rest() -> None:
    spec = random_spec(6, "aiha")
    layer = spec.layers[0]
    assert isinstance(spec.head, Vocabulary)
    assert "spec.hidden" in wheres(replace(spec, hidden=0))
    assert "spec.layers" in wheres(replace(spec, layers=()))
    assert "layers.0.norm_eps" in wheres(replace(spec, layers=(replace(layer, norm_eps=0.0),)))
    assert "layers.0.norm_offset" in wheres(replace(spec, layers=(replace(layer, norm_offset=0.5),)))
    assert layer.feed_forward is not None
    bad_width = replace(layer, feed_forward=replace(layer.feed_forward, width=0))
    assert "layers.0.feed_forward.width" in wheres(replace(spec, layers=(bad_width,)))
    assert {"embedding", "head"} <= wheres(replace(spec, vocab=spec.vocab + 1))
    assert "head.clusters" in wheres(replace(spec, head=replace(spec.head, clusters=())))
    assert "spec.head" in wheres(replace(spec, head=None))
    mixed = (layer, replace(layer, attention=replace(layer.attention, position=SharedTable(99))))
    assert "spec.layers" in wheres(replace(spec, layers=mixed))
    assert "embedding.0.width" in wheres(replace(spec, embedding=Embedding((Cluster(spec.vocab, spec.hidden + 1, False),), 1.0)))


def test_ties_need_rows_that_fit() -> None:
    spec = next(s for s in map(random_spec, range(200)) if isinstance(s.head, Vocabulary) and len(s.head.clusters) == 3)
    assert isinstance(spec.head, Vocabulary)
    tied = tuple(replace(c, tied=True) for c in spec.head.clusters)
    spec = replace(spec, head=replace(spec.head, clusters=tied))
    assert not any(where.endswith(".tied") for where in wheres(spec))
    one = Embedding((Cluster(spec.vocab, spec.hidden, False),), 1.0)  # wider rows than the last clusters have, where those project
    expected = {f"head.{i}.tied" for i, c in enumerate(tied) if c.width != spec.hidden}
    assert {where for where in wheres(replace(spec, embedding=one)) if where.endswith(".tied")} == expected
    a, b, c = tied
    across = (
        (replace(a, size=a.size + 1), replace(b, size=b.size - 1), c)
        if b.size > 1
        else (a, replace(b, size=b.size + 1), replace(c, size=c.size - 1))
    )
    found = wheres(replace(spec, head=replace(spec.head, clusters=across)))
    assert any(where.endswith(".tied") for where in found)
    projected = tuple(replace(c, projected=False, tied_projection=True) for c in tied)
    assert "head.0.tied_projection" in wheres(replace(spec, head=replace(spec.head, clusters=projected)))


@pytest.mark.parametrize("sizes", [(-1, 1), (0, 0), (1, -1)])
def test_ties_of_impossible_clusters_are_problems_not_crashes(sizes: tuple[int, int]) -> None:
    spec = random_spec(4, "aiha")
    assert isinstance(spec.head, Vocabulary)
    one = replace(spec.head.clusters[0], width=spec.hidden, projected=False, tied=True, tied_projection=False)
    clusters = (replace(one, size=sizes[0]), replace(one, size=spec.vocab), replace(one, size=sizes[1]))
    assert any(where.endswith(".size") for where in wheres(replace(spec, head=replace(spec.head, clusters=clusters))))


def test_random_edits_never_crash() -> None:
    rng = np.random.default_rng(3)
    accepted = refused = 0
    replacements = [0, -1, 1, 7, 2**31 - 1, 2**40, 1.5, 1e300, True, None, "", "Table", [], {}, [0, 0], {"kind": "Table"}]
    for round_ in range(500):
        value: Any = random_spec(round_ % 40).to_dict()
        for _ in range(int(rng.integers(1, 3))):
            node, key = value, None
            while isinstance(node, (dict, list)) and node:
                keys = list(node) if isinstance(node, dict) else list(range(len(node)))
                parent, key = node, keys[int(rng.integers(len(keys)))]
                node = parent[key]
            if key is not None:
                parent[key] = replacements[int(rng.integers(len(replacements)))]
        try:
            ModelSpec.from_dict(value).tensors()
            accepted += 1
        except SpecMismatch:
            refused += 1
    assert accepted > 10 and refused > 200, (accepted, refused)


# Tensors


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_declares_its_tensors(dialect: str) -> None:
    for seed in range(30):
        spec = random_spec(seed, dialect)
        shapes = spec.tensors()
        assert all(size > 0 for shape in shapes.values() for size in shape)
        for index, layer in enumerate(spec.layers):
            a, where = layer.attention, f"layers.{index}.attention"
            present = {name.removeprefix(f"{where}.") for name in shapes if name.startswith(f"{where}.")}
            if a.heads == 0:
                assert present == ({"output_bias"} if a.output_bias else set())
                continue
            assert shapes[f"{where}.output"] == (spec.hidden, a.heads * a.head_dim)
            assert ({"content_bias", "position_bias", "relative"} <= present) == (dialect in ("aiha", "txl"))
            assert ("persistent_keys" in present) == (a.persistent > 0)
            assert ("head_scale" in present) == a.scaled
            assert ("query_bias" in present) == a.bias
            assert spec.note(f"{where}.query") == f"{a.heads} kept heads × {a.head_dim}"
            assert spec.note(f"{where}.output_bias") == spec.note("embedding.0") == ""
        table = {"aiha": "position.table", "fair": "position.table", "txl": "position.frequencies"}.get(dialect)
        assert [name for name in shapes if name.startswith("position.")] == ([table] if table else [])


def test_the_tables_of_the_dialects() -> None:
    aiha, fair, txl = (random_spec(3, dialect) for dialect in ("aiha", "fair", "txl"))
    assert isinstance(aiha.layers[0].attention.position, Table)
    assert aiha.tensors()["position.table"] == (aiha.layers[0].attention.position.rows, aiha.hidden)
    assert isinstance(fair.layers[0].attention.position, SharedTable)
    assert fair.tensors()["position.table"] == (fair.layers[0].attention.position.rows, fair.layers[0].attention.head_dim)
    assert txl.tensors()["position.frequencies"] == (txl.hidden // 2,)


def test_tied_source_is_the_same_token_s_row() -> None:
    """Row r of output cluster c and the row it is tied to belong to one token id."""
    seen = 0
    for seed in range(60):
        spec = random_spec(seed)
        if not isinstance(spec.head, Vocabulary):
            continue
        rows = [(f"embedding.{i}", row) for i, c in enumerate(spec.embedding.clusters) for row in range(c.size)]
        token = 0
        for index, c in enumerate(spec.head.clusters):
            name, start, stop = spec.tied_source(index)
            assert [(name, row) for row in range(start, stop)] == rows[token : token + c.size]
            assert (f"head.{index}" in spec.tensors()) == (not c.tied)
            token += c.size
            seen += c.tied
    assert seen > 20


def test_an_output_may_be_tied_inside_one_embedding_cluster() -> None:
    spec = next(s for s in map(random_spec, range(200)) if isinstance(s.head, Vocabulary) and len(s.head.clusters) == 3)
    assert isinstance(spec.head, Vocabulary)
    clusters = tuple(replace(c, width=spec.hidden, projected=False, tied=True, tied_projection=False) for c in spec.head.clusters)
    whole = Embedding((Cluster(spec.vocab, spec.hidden, False),), 1.0)
    spec = replace(spec, embedding=whole, head=replace(spec.head, clusters=clusters)).check()
    a, b, c = (cluster.size for cluster in clusters)
    assert [spec.tied_source(i) for i in range(3)] == [("embedding.0", 0, a), ("embedding.0", a, a + b), ("embedding.0", a + b, a + b + c)]


@pytest.mark.parametrize("reach", [("txl", 63, None, 63), ("aiha", 63, 7, 69), ("txl", None, None, None)])
def test_reach(reach: tuple[str, int | None, int | None, int | None]) -> None:
    dialect, window, segment, expected = reach
    assert replace(random_spec(0, dialect).layers[0].attention, window=window, segment=segment).reach == expected
