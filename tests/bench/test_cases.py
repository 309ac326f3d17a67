"""What is measured: the published geometry, weights that mean something, and three models of the same weights."""

from __future__ import annotations

import numpy as np
import pytest

from bench.core import cases, nominal
from bench.core.cases import S1, TINY
from bench.core.engines import EngineSettings, Stream, build
from bench.core.gate import gate
from engine.checkpoint import validate
from engine.errors import InputError
from engine.measure.provenance import Digests
from engine.measure.tokens import random_ids
from engine.spec.cost import model_cost

TORCH = EngineSettings("torch", "float32")


def test_s1_is_the_published_geometry() -> None:
    spec = cases.dense_spec(S1, vocabulary=True)
    assert (spec.hidden, spec.vocab, len(spec.layers)) == (512, 267_735, 16)
    assert [c.width for c in spec.embedding.clusters] == [512, 128, 32, 8]
    attention = spec.layers[0].attention
    assert (attention.heads, attention.head_dim, attention.persistent, attention.window) == (8, 64, 2048, 193)
    assert sorted(cases.kept_lists(S1)) == [59, 87, 106]
    layers = [layer.parameters for layer in model_cost(spec).layers]
    assert sum(layers) == 16 * 3_410_432  # arXiv 2110.03252: h · (5 d dh + 2 N dh + 2 dh) + 3 d


def test_kept_heads_are_not_a_prefix_and_the_same_every_time() -> None:
    lists = cases.kept_lists(S1)
    assert lists == cases.kept_lists(S1)
    assert [len(heads) for heads in lists[59]] == list(S1.pruned[2])
    assert any(heads != tuple(range(len(heads))) for heads in lists[59])


def test_levels_take_the_same_share_of_every_layer() -> None:
    assert {total: [len(h) for h in kept] for total, kept in cases.level_lists(TINY, [0, 25, 50]).items()} == {9: [3] * 3, 6: [2] * 3}
    with pytest.raises(InputError) as caught:
        cases.level_lists(TINY, [-5, 50, 90, 120])
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize("vocabulary", [False, True])
def test_masked_and_compact_answer_alike_and_unlike_dense(vocabulary: bool) -> None:
    """If masking changed nothing, or softmaxes were flat, the gate would be worth nothing."""
    dense = cases.dense_model(TINY, vocabulary=vocabulary)
    validate(dense.spec, dense.weights)
    kept = cases.kept_lists(TINY)[4]
    ids = random_ids(dense.spec.vocab, (2, 30), seed=3)
    answers = []
    for checkpoint in (dense, cases.masked(dense, kept), cases.compact(dense, kept)):
        with Stream(build(checkpoint, TORCH), 2) as stream:
            answers.append(stream.step(ids, "log_probs").log_probs)
    whole, masked, compact = (np.asarray(a) for a in answers)
    assert np.isfinite(whole).all()
    assert whole.std() > 0.5
    assert np.abs(masked - whole).max() > 0.1
    assert np.abs(masked - compact).max() < 2e-5


def test_digests_tell_models_apart_and_not_copies() -> None:
    dense = cases.dense_model(TINY, vocabulary=False)
    kept = cases.kept_lists(TINY)[8]
    digests = Digests()
    names = [digests.of(c.weights) for c in (dense, cases.masked(dense, kept), cases.compact(dense, kept))]
    assert len(set(names)) == 3
    assert digests.of({name: array.copy() for name, array in dense.weights.items()}) == names[0]
    assert Digests().of(cases.dense_model(TINY, vocabulary=False, seed=1).weights) != names[0]


def test_ids_have_the_frequencies_of_words() -> None:
    ids = random_ids(1000, (200, 100), seed=0)
    assert ids.min() == 0 and ids.max() < 1000
    counts = np.bincount(ids.reshape(-1), minlength=1000)
    assert counts[0] > 5 * counts[10] > 0


def test_vocabulary_flops_of_every_row_are_engine_costs() -> None:
    spec = cases.dense_spec(S1, vocabulary=True)
    part = next(part for part in model_cost(spec, rows=7).parts if part.name == "vocabulary")
    assert nominal.vocabulary_flops(spec, [7, 7, 7, 7]) == part.prefill.needed


def test_the_calls_flops_are_engine_costs_where_all_of_it_is_read() -> None:
    spec = cases.dense_spec(TINY, vocabulary=False)
    ids = random_ids(spec.vocab, (4, 12), seed=0)
    cost = model_cost(spec, rows=12, batch=4)
    assert nominal.model_flops(spec, ids, ids, work="score") == cost.prefill()
    assert nominal.model_flops(spec, ids[:, :1], None, work="decode") == cost.decode
    inside = nominal.layers_flops(spec, work="decode", batch=4, rows=12)
    assert inside.needed == sum(layer.decode.needed for layer in cost.layers)


def test_a_gate_lets_no_nan_through() -> None:
    exact = np.array([1.0, 2.0], np.float32)
    assert gate(exact + np.float32(1e-5), exact, "float32").passed
    assert not gate(exact + np.float32(1e-3), exact, "float32").passed
    assert not gate(np.array([1.0, np.nan], np.float32), exact, "float32").passed
    assert not gate(exact, np.array([np.nan, 2.0]), "float32").passed
    assert not gate(exact, exact, "bfloat16", plain=np.array([np.nan, 2.0])).passed
    assert gate(exact + np.float32(0.03), exact, "bfloat16", plain=exact).passed
    assert not gate(exact + np.float32(0.3), exact, "bfloat16", plain=exact).passed
