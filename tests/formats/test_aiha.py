"""The aiha-lab converter against the published fixtures and against an independent float64 forward of the source's own state dict."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import engine
from engine.checkpoint import Checkpoint
from engine.errors import InputError
from engine.formats.read import read_source
from tests.support.aiha_reference import log_probs
from tests.support.converted import close, run, tokens
from tests.support.sources import AihaSource, gates_keeping, write_state

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
SHAKESPEARE = ROOT / "examples" / "shakespeare"
TOLERANCE = 2e-4  # the bound for float32 against the published code
SMALL = AihaSource()
ADAPTIVE = AihaSource(cutoffs=(6, 13), div_value=2)


def converts_to_itself(source: AihaSource, folder: Path) -> Checkpoint:
    """The converted model computes what the source's state dict computes."""
    checkpoint, _ = read_source(source.write(folder))
    ids = tokens(source)
    close(run(checkpoint, ids), log_probs(source, ids))
    return checkpoint


# --- fixtures


@pytest.mark.parametrize("name", ["aiha-adaptive", "aiha-char"])
def test_fixture_is_reproduced_directly_and_after_convert(name: str, tmp_path: Path) -> None:
    expected = np.load(FIXTURES / name / "expected.npz")
    engine.convert(FIXTURES / name, tmp_path / "out")
    for path in (FIXTURES / name, tmp_path / "out"):
        with engine.load(path, dtype="float32", backend="torch", check=True) as model:
            close(model.log_probs(expected["ids"]), expected["log_probs"], TOLERANCE)
            close(model.score(expected["ids"][:1]).mean, float(-_picked(expected["log_probs"][0], expected["ids"][0]).mean()), TOLERANCE)


@pytest.mark.parametrize("name", ["dense", "gated"])
def test_trained_shakespeare_is_reproduced(name: str) -> None:
    expected = np.load(FIXTURES / "shakespeare-char" / "expected.npz")
    with engine.load(SHAKESPEARE / f"{name}.ckpt", dtype="float32", backend="torch") as model:
        close(model.score(expected["ids"]).token_nll, expected[f"token_nll_{name}"], TOLERANCE)


def _picked(log_probs: np.ndarray, ids: np.ndarray) -> np.ndarray:
    return log_probs[np.arange(len(ids) - 1), ids[1:]]


def test_fixture_says_what_was_done() -> None:
    checkpoint, report = read_source(FIXTURES / "aiha-adaptive")
    assert report.kept == ((0, 2, 3), (2,), (0, 1, 2, 3)) and report.source_heads == (4, 4, 4)
    assert report.format == "aiha-lab" and report.parameters == sum(a.size for a in checkpoint.weights.values())
    assert checkpoint.provenance["source"] == "checkpoint.ckpt" and "sha256" not in checkpoint.provenance
    assert checkpoint.provenance["training"] == {"epoch": 3, "iteration": 1234}
    json.dumps(checkpoint.provenance, allow_nan=False)
    assert [cluster.tied_projection for cluster in checkpoint.spec.head.clusters] == [False, True, True, True]  # type: ignore[union-attr]


# --- the source's formulas, over its options


@pytest.mark.parametrize("pre_norm", [True, False])
@pytest.mark.parametrize("attn_bias", [True, False])
@pytest.mark.parametrize("share_r_bias", [True, False])
def test_norms_and_biases(pre_norm: bool, attn_bias: bool, share_r_bias: bool, tmp_path: Path) -> None:
    converts_to_itself(replace(SMALL, pre_norm=pre_norm, attn_bias=attn_bias, share_r_bias=share_r_bias), tmp_path)


@pytest.mark.parametrize("div_value", [1, 2, 4])
@pytest.mark.parametrize("tie_proj", [True, False])
@pytest.mark.parametrize("cutoffs", [(22,), (6, 13), (3, 9, 20)])
def test_cutoffs(div_value: int, tie_proj: bool, cutoffs: tuple[int, ...], tmp_path: Path) -> None:
    source = AihaSource(hidden_dim=64, num_heads=4, num_layers=1, cutoffs=cutoffs, div_value=div_value, tie_proj=tie_proj)
    head = converts_to_itself(source, tmp_path).spec.head
    assert [c.tied_projection for c in head.clusters[1:]] == [div_value > 1 and tie_proj] * len(cutoffs)  # type: ignore[union-attr]
    assert [c.projected for c in head.clusters] == [div_value > 1] * (len(cutoffs) + 1)  # type: ignore[union-attr]


@pytest.mark.parametrize("heads", [1, 3, 7])
@pytest.mark.parametrize("persistent", [0, 1, 17])
def test_heads_and_persistent_vectors(heads: int, persistent: int, tmp_path: Path) -> None:
    gates = gates_keeping([range(heads), range(0, heads, 2)], heads)  # without persistent vectors the gates show the number of heads
    converts_to_itself(replace(SMALL, hidden_dim=2 * heads, num_heads=heads, feedforward_dim=persistent, gates=gates), tmp_path)


@pytest.mark.parametrize("kept", [[[], [1]], [[0, 2], []], [[], []]])
def test_layer_with_no_head_left(kept: list[list[int]], tmp_path: Path) -> None:
    source = replace(SMALL, gates=gates_keeping(kept, 3))
    checkpoint = converts_to_itself(source, tmp_path)
    assert [list(layer.attention.kept) for layer in checkpoint.spec.layers] == kept


@pytest.mark.parametrize("memory", [0, 1, 6])
@pytest.mark.parametrize("segment", [1, 2, 5])
def test_same_length_false_by_segments(memory: int, segment: int, tmp_path: Path) -> None:
    source = replace(SMALL, same_length=False, mem_length=memory, seq_length=segment)
    checkpoint = converts_to_itself(source, tmp_path)
    assert (checkpoint.spec.layers[0].attention.window, checkpoint.spec.layers[0].attention.segment) == (memory + 1, segment)
    assert any("same_length is false" in note for note in checkpoint.provenance["notes"])


# --- traps, by name


def test_start_of_memory_is_zeros_that_are_attended(tmp_path: Path) -> None:
    ids = tokens(SMALL, 2)
    checkpoint, _ = read_source(SMALL.write(tmp_path))
    close(run(checkpoint, ids), log_probs(SMALL, ids))
    layers = tuple(replace(layer, attention=replace(layer.attention, start="empty")) for layer in checkpoint.spec.layers)
    wrong = run(replace(checkpoint, spec=replace(checkpoint.spec, layers=layers)), ids)
    assert np.abs(wrong - log_probs(SMALL, ids)).max() > 1e-2


def test_start_of_memory_post_norm_is_not_normalised(tmp_path: Path) -> None:
    source = replace(SMALL, pre_norm=False, attn_bias=True)
    checkpoint, _ = read_source(source.write(tmp_path))
    close(run(checkpoint, tokens(source, 1)), log_probs(source, tokens(source, 1)))


def test_visible_keys_are_memory_plus_one(tmp_path: Path) -> None:
    checkpoint, _ = read_source(SMALL.write(tmp_path))
    assert checkpoint.spec.layers[0].attention.window == SMALL.mem_length + 1
    for other in (-1, 1):
        window = SMALL.mem_length + 1 + other
        layers = tuple(replace(layer, attention=replace(layer.attention, window=window)) for layer in checkpoint.spec.layers)
        wrong = run(replace(checkpoint, spec=replace(checkpoint.spec, layers=layers)), tokens(SMALL))
        assert np.abs(wrong - log_probs(SMALL, tokens(SMALL))).max() > 1e-3


def test_streaming_equals_segments(tmp_path: Path) -> None:
    checkpoint, _ = read_source(SMALL.write(tmp_path))
    for pieces in (1, 3):
        close(run(checkpoint, tokens(SMALL), pieces), log_probs(SMALL, tokens(SMALL)))


def test_layer_norm_gain_is_one_plus_stored_weight(tmp_path: Path) -> None:
    for pre_norm in (True, False):
        source = replace(SMALL, pre_norm=pre_norm)
        checkpoint = converts_to_itself(source, tmp_path / str(pre_norm))
        assert all(layer.norm_offset == 1 for layer in checkpoint.spec.layers)


def test_transposed_tied_projections_are_told_by_shape(tmp_path: Path) -> None:
    tied, untied = ADAPTIVE, replace(ADAPTIVE, tie_proj=False)
    assert tied.state()["criterion.tail.0.0.weight.data"].shape == (12, 6)
    assert untied.state()["criterion.tail.0.0.weight.data"].shape == (6, 12)
    for source in (tied, untied):
        converts_to_itself(source, tmp_path / str(source.tie_proj))
        path = replace(source, drop=("tie_proj",)).write(tmp_path / f"{source.tie_proj} not said")
        close(run(read_source(path)[0], tokens(source)), log_probs(source, tokens(source)))


@pytest.mark.parametrize("prefix", ["module.", "network.", "module.network.", "module.module.network.module."])
def test_prefix_stripping(prefix: str, tmp_path: Path) -> None:
    checkpoint, _ = read_source(SMALL.write(tmp_path, prefix=prefix))
    close(run(checkpoint, tokens(SMALL)), log_probs(SMALL, tokens(SMALL)))


def test_cluster_order_is_ascending_and_entries_read_the_hidden_state(tmp_path: Path) -> None:
    checkpoint = converts_to_itself(ADAPTIVE, tmp_path)
    head = checkpoint.spec.head
    assert (head.order, head.cluster_input) == ("ascending", "hidden")  # type: ignore[union-attr]
    for wrong in (replace(head, order="descending"), replace(head, cluster_input="projected")):  # type: ignore[type-var]
        found = run(replace(checkpoint, spec=replace(checkpoint.spec, head=wrong)), tokens(ADAPTIVE))
        assert np.abs(found - log_probs(ADAPTIVE, tokens(ADAPTIVE))).max() > 1e-2


def test_persistent_logit_has_no_bias_and_no_scale(tmp_path: Path) -> None:
    """Biases ten times larger: any of them on a persistent logit would show."""
    source = AihaSource(num_layers=1, share_r_bias=True)
    state = source.state()
    for name in ("rel_query_bias.data", "rel_pos_bias.data"):
        state[name] = 10 * state[name]
    source.write(tmp_path)
    checkpoint, _ = read_source(write_state(tmp_path / "checkpoint.ckpt", state))
    np.testing.assert_array_equal(checkpoint.weights["layers.0.attention.persistent_keys"], state["layers.0.attn.mem_k.data"][0])
    close(run(checkpoint, tokens(source)), log_probs(source, tokens(source), state=state), 2e-4)


def test_gate_of_exactly_zero_keeps_its_head(tmp_path: Path) -> None:
    checkpoint = converts_to_itself(replace(SMALL, gates=((0.0, -0.0, -1e-3), (-2.0, 2.0, 0.0))), tmp_path)
    assert [layer.attention.kept for layer in checkpoint.spec.layers] == [(0, 1), (1, 2)]


def test_kept_sets_that_are_not_a_prefix_with_shared_biases(tmp_path: Path) -> None:
    source = replace(SMALL, share_r_bias=True, gates=gates_keeping([[2], [0, 2]], 3))
    checkpoint = converts_to_itself(source, tmp_path)
    bias = source.state()["rel_query_bias.data"].reshape(3, 4)
    np.testing.assert_array_equal(checkpoint.weights["layers.0.attention.content_bias"], bias[[2]])
    np.testing.assert_array_equal(checkpoint.weights["layers.1.attention.content_bias"], bias[[0, 2]])


def test_file_without_gates_keeps_all_heads(tmp_path: Path) -> None:
    assert "layers.0.attn.gate.gate.data" not in SMALL.state()
    checkpoint = converts_to_itself(SMALL, tmp_path)
    assert all(layer.attention.heads == 3 for layer in checkpoint.spec.layers)


# --- heads= and output_scale


def test_dense_with_heads_equals_masked_dense(tmp_path: Path) -> None:
    path = SMALL.write(tmp_path)
    mask = np.array([[0, 1, 0.5], [1, 0, -2]])
    ids = tokens(SMALL)
    close(run(read_source(path, heads=mask)[0], ids), log_probs(SMALL, ids, scale=mask))
    close(run(read_source(path, heads=[[1, 2], [0]])[0], ids), log_probs(SMALL, ids, scale=np.array([[0, 1, 1], [1, 0, 0]])))
    close(run(read_source(path, heads={"1": [0, 1, 2]})[0], ids), log_probs(SMALL, ids, scale=np.array([[1, 1, 1], [0, 0, 0]])))


def test_heads_intersect_the_gates(tmp_path: Path) -> None:
    source = replace(SMALL, gates=gates_keeping([[0, 2], [1]], 3))
    checkpoint, report = read_source(source.write(tmp_path), heads=[[0, 1], [0, 1]])
    assert report.kept == ((0,), (1,)) and checkpoint.provenance["kept"] == [[0], [1]]
    close(run(checkpoint, tokens(source)), log_probs(source, tokens(source), scale=np.array([[1, 1, 0], [1, 1, 0]])))


@pytest.mark.parametrize("scale", [1.5, [1.5, 0.25], [[1.0, 2.0, 3.0], [0.5, 0.25, -1.0]]])
def test_output_scale(scale: object, tmp_path: Path) -> None:
    source = replace(SMALL, gates=gates_keeping([[0, 2], [1]], 3))
    checkpoint, _ = read_source(source.write(tmp_path), output_scale=scale)
    factors = np.array(scale)
    full = np.broadcast_to(factors[:, None] if factors.ndim == 1 else factors, (2, 3))
    close(run(checkpoint, tokens(source)), log_probs(source, tokens(source), scale=full))


def test_output_scale_and_heads_multiply(tmp_path: Path) -> None:
    checkpoint, _ = read_source(SMALL.write(tmp_path), output_scale=[2.0, 0.5], heads=np.array([[1.0, 0, 3], [4, 1, 1]]))
    np.testing.assert_array_equal(checkpoint.weights["layers.0.attention.head_scale"], np.float32([2, 6]))
    np.testing.assert_array_equal(checkpoint.weights["layers.1.attention.head_scale"], np.float32([2, 0.5, 0.5]))


def test_heads_of_the_wrong_kind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="heads from 0 to 2"):
        read_source(SMALL.write(tmp_path), heads=[[3], [0]])


def test_edges_of_the_clusters_are_covered() -> None:
    """The tokens the tests above draw reach the first and last word of every cluster."""
    drawn = set(tokens(ADAPTIVE, 400).tolist())
    edges = [0, *ADAPTIVE.cutoffs, ADAPTIVE.vocab]
    assert all({start, stop - 1} <= drawn for start, stop in pairwise(edges))
