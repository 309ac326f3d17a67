"""The Transformer-XL converter against its fixture and a float64 forward of the source's own state dict, option by option, trap by trap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engine
from engine.checkpoint import Checkpoint
from engine.checkpoint.surgery import prune
from engine.errors import ConversionError
from engine.formats.base import Converted
from engine.formats.transformer_xl import CONVERTER
from engine.spec import Sinusoid, Vocabulary
from tests.support.engine_side import one_by_one, ragged, torch_runner, whole
from tests.support.transformer_xl_sources import TransformerXLOptions, transformer_xl_log_probs, transformer_xl_source

FIXTURE = Path(__file__).parents[1] / "fixtures" / "txl"
TOLERANCE = 1e-4
PLAIN = TransformerXLOptions()
ADAPTIVE = TransformerXLOptions(div_val=2, cutoffs=(9, 20), tie_projs=(False, True, True))
SEGMENTS = TransformerXLOptions(same_length=False, mem_len=9, tgt_len=7)
OPTIONS = {
    "post-norm": PLAIN,
    "pre-norm": TransformerXLOptions(pre_lnorm=True),
    "clamped": TransformerXLOptions(clamp_len=5),
    "clamp-zero-is-none": TransformerXLOptions(clamp_len=0),
    "segments": SEGMENTS,
    "segments-pre-norm-clamped": replace(SEGMENTS, pre_lnorm=True, clamp_len=6),
    "segments-longer-than-memory": replace(SEGMENTS, mem_len=2, tgt_len=17),
    "segments-without-memory": replace(SEGMENTS, mem_len=0),
    "segments-of-one": replace(SEGMENTS, tgt_len=1),
    "memory-1": TransformerXLOptions(mem_len=1),
    "memory-63": TransformerXLOptions(mem_len=63),
    "untied": TransformerXLOptions(tie_weight=False),
    "narrow-embedding": TransformerXLOptions(embed=10, tie_projs=(True,)),
    "div-1-cutoffs": TransformerXLOptions(cutoffs=(9, 20)),
    "div-1-cutoffs-untied": TransformerXLOptions(cutoffs=(9, 20), tie_weight=False),
    "div-1-cutoffs-narrow": TransformerXLOptions(cutoffs=(5, 30, 36), embed=10, tie_projs=(False, True, True)),
    "div-2": ADAPTIVE,
    "div-2-untied": replace(ADAPTIVE, tie_weight=False, tie_projs=(False,)),
    "div-2-no-cutoffs": TransformerXLOptions(div_val=2, tie_projs=(True,)),
    "div-4-narrow-pre-norm": TransformerXLOptions(hidden=20, embed=16, div_val=4, cutoffs=(11, 24), pre_lnorm=True, tie_projs=(True,) * 3),
    "heads-times-size-is-not-hidden": TransformerXLOptions(hidden=10, heads=7, head_dim=3),
    "one-head": TransformerXLOptions(heads=1, head_dim=5, layers=1),
    "no-feed-forward": TransformerXLOptions(inner=0),
    "no-feed-forward-pre-norm": TransformerXLOptions(inner=0, pre_lnorm=True),
}


def convert(tensors: Mapping[str, np.ndarray], args: Mapping[str, Any], **options: Any) -> Converted:
    return CONVERTER.read(tensors, args, options, Path("model.pt"))


def tokens(options: TransformerXLOptions, count: int = 65) -> np.ndarray:
    return np.random.default_rng(7).integers(0, options.vocab, count)


def difference(checkpoint: Checkpoint, expected: np.ndarray, ids: np.ndarray) -> float:
    return float(np.abs(whole(torch_runner(checkpoint), ids) - expected).max())


def refused(tensors: Mapping[str, np.ndarray], args: Mapping[str, Any], **options: Any) -> list[str]:
    with pytest.raises(ConversionError) as caught:
        convert(tensors, args, **options)
    return [str(problem) for problem in caught.value.problems]


def masked(tensors: Mapping[str, np.ndarray], kept: Sequence[Sequence[int]], dim: int) -> dict[str, np.ndarray]:
    """The source with the output columns of all other heads zeroed."""
    result = dict(tensors)
    for index, heads in enumerate(kept):
        name = f"layers.{index}.dec_attn.o_net.weight"
        columns = np.repeat([h in heads for h in range(tensors[name].shape[1] // dim)], dim)
        result[name] = tensors[name] * columns.astype(np.float32)
    return result


def with_attention(checkpoint: Checkpoint, **changes: Any) -> Checkpoint:
    layers = tuple(replace(layer, attention=replace(layer.attention, **changes)) for layer in checkpoint.spec.layers)
    return replace(checkpoint, spec=replace(checkpoint.spec, layers=layers))


# --- numbers


def test_fixture_is_reproduced_by_load_and_by_convert(tmp_path: Path) -> None:
    expected = np.load(FIXTURE / "expected.npz")
    engine.convert(FIXTURE, tmp_path / "out")
    for path in (FIXTURE, FIXTURE / "model.pt", tmp_path / "out"):
        with engine.load(path, dtype="float32", backend="torch") as model:
            assert np.abs(model.score(expected["ids"]).token_nll - expected["token_nll"]).max() <= 2e-4


def test_the_independent_forward_agrees_with_the_fixture() -> None:
    """Otherwise the tests below would compare the engine with nothing."""
    import json

    import torch

    tensors = {name: tensor.numpy() for name, tensor in torch.load(FIXTURE / "model.pt", weights_only=True).items()}
    expected = np.load(FIXTURE / "expected.npz")
    ids = expected["ids"][1]
    found = transformer_xl_log_probs(tensors, json.loads((FIXTURE / "args.json").read_text()), ids[:-1])
    assert np.abs(-found[np.arange(80), ids[1:]] - expected["token_nll"][1]).max() <= 5e-5


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_computes_what_the_source_computes(name: str) -> None:
    options = OPTIONS[name]
    tensors, args = transformer_xl_source(options)
    ids = tokens(options)
    assert difference(convert(tensors, args).checkpoint, transformer_xl_log_probs(tensors, args, ids), ids) <= TOLERANCE


@pytest.mark.parametrize("length", [1, 2, 63])
def test_odd_lengths(length: int) -> None:
    tensors, args = transformer_xl_source(SEGMENTS)
    ids = tokens(SEGMENTS, length)
    assert difference(convert(tensors, args).checkpoint, transformer_xl_log_probs(tensors, args, ids), ids) <= TOLERANCE


def test_frequencies_are_formed_where_the_file_lacks_them() -> None:
    tensors, args = transformer_xl_source(PLAIN)
    ids = tokens(PLAIN)
    expected = transformer_xl_log_probs(tensors, args, ids)
    stored = convert(tensors, args).checkpoint.weights["position.frequencies"]
    del tensors["pos_emb.inv_freq"]
    checkpoint = convert(tensors, args).checkpoint
    assert checkpoint.weights["position.frequencies"].dtype == np.float32
    np.testing.assert_allclose(checkpoint.weights["position.frequencies"], stored, rtol=3e-7)
    assert difference(checkpoint, expected, ids) <= TOLERANCE


# --- traps


@pytest.mark.parametrize("name", ["post-norm", "pre-norm", "segments"])
def test_start_of_memory_is_empty(name: str) -> None:
    options = OPTIONS[name]
    tensors, args = transformer_xl_source(options)
    ids = tokens(options, 9)
    checkpoint = convert(tensors, args).checkpoint
    zeros = transformer_xl_log_probs(tensors, args, ids, zero_start=True)
    assert difference(checkpoint, transformer_xl_log_probs(tensors, args, ids), ids) <= TOLERANCE
    assert difference(checkpoint, zeros, ids) > 0.05
    assert difference(with_attention(checkpoint, start="attended_zeros"), zeros, ids) <= TOLERANCE  # so the start is all that differs


@pytest.mark.parametrize("window", [11, 13])
def test_visible_keys_are_M_with_the_token_itself(window: int) -> None:
    tensors, args = transformer_xl_source(PLAIN)
    ids = tokens(PLAIN)
    checkpoint = convert(tensors, args).checkpoint
    attention = checkpoint.spec.layers[0].attention
    assert (attention.window, attention.segment, attention.sees_self) == (12, None, True)
    assert difference(with_attention(checkpoint, window=window), transformer_xl_log_probs(tensors, args, ids), ids) > 1e-3


def test_visible_keys_grow_within_a_segment_without_same_length() -> None:
    tensors, args = transformer_xl_source(SEGMENTS)
    ids = tokens(SEGMENTS)
    expected = transformer_xl_log_probs(tensors, args, ids)
    converted = convert(tensors, args)
    attention = converted.checkpoint.spec.layers[0].attention
    assert (attention.window, attention.segment) == (10, 7)
    assert any("tgt_len" in note for note in converted.notes)
    for wrong in ({"window": 9}, {"segment": 8}, {"segment": None}):
        assert difference(with_attention(converted.checkpoint, **wrong), expected, ids) > 1e-3


@pytest.mark.parametrize("name", ["post-norm", "pre-norm", "clamped", "div-2"])
def test_streaming_equals_segments_with_same_length(name: str) -> None:
    options = OPTIONS[name]
    tensors, args = transformer_xl_source(options)
    ids = tokens(options)
    cut = [transformer_xl_log_probs(tensors, args, ids, size) for size in (1, 7, 12, 65)]
    assert max(float(np.abs(other - cut[0]).max()) for other in cut) <= 1e-9
    runner = torch_runner(convert(tensors, args).checkpoint)
    assert np.abs(one_by_one(runner, ids) - cut[0]).max() <= TOLERANCE
    pieces = ragged(runner, [ids[:17], ids, ids[:40]], np.random.default_rng(0))
    assert all(np.abs(piece - cut[0][: len(piece)]).max() <= TOLERANCE for piece in pieces)


def test_streaming_equals_segments_of_tgt_len_without_same_length() -> None:
    """One token at a time, the engine still answers as the source does in its segments, which the source itself would not."""
    tensors, args = transformer_xl_source(SEGMENTS)
    ids = tokens(SEGMENTS)
    expected = transformer_xl_log_probs(tensors, args, ids)
    assert np.abs(transformer_xl_log_probs(tensors, args, ids, 1) - expected).max() > 1e-3
    assert np.abs(one_by_one(torch_runner(convert(tensors, args).checkpoint), ids) - expected).max() <= TOLERANCE


@pytest.mark.parametrize("name", ["div-2", "div-1-cutoffs"])
def test_cluster_order_is_reversed(name: str) -> None:
    options = OPTIONS[name]
    tensors, args = transformer_xl_source(options)
    ids = tokens(options)
    checkpoint = convert(tensors, args).checkpoint
    head = checkpoint.spec.head
    assert isinstance(head, Vocabulary)
    assert (head.order, head.cluster_input) == ("descending", "projected")
    wrong = replace(checkpoint, spec=replace(checkpoint.spec, head=replace(head, order="ascending")))
    assert difference(wrong, transformer_xl_log_probs(tensors, args, ids), ids) > 0.05


def test_cluster_entries_read_the_projected_state() -> None:
    tensors, args = transformer_xl_source(ADAPTIVE)
    ids = tokens(ADAPTIVE)
    checkpoint = convert(tensors, args).checkpoint
    assert isinstance(checkpoint.spec.head, Vocabulary)
    wrong = replace(checkpoint, spec=replace(checkpoint.spec, head=replace(checkpoint.spec.head, cluster_input="hidden")))
    assert difference(wrong, transformer_xl_log_probs(tensors, args, ids), ids) > 0.05


@pytest.mark.parametrize("kept", [[[1, 2], [0]], [[2], []], [[], []], [[0, 2], [1]]], ids=str)
@pytest.mark.parametrize("name", ["post-norm", "segments-pre-norm-clamped", "div-1-cutoffs-narrow", "no-feed-forward"])
def test_shared_biases_with_kept_sets_that_are_not_a_prefix(name: str, kept: list[list[int]]) -> None:
    options = OPTIONS[name]
    tensors, args = transformer_xl_source(options)
    ids = tokens(options)
    checkpoint = prune(convert(tensors, args).checkpoint, kept)
    for index, heads in enumerate(kept):
        if heads:
            assert np.array_equal(checkpoint.weights[f"layers.{index}.attention.content_bias"], tensors["r_w_bias"][heads])
            assert np.array_equal(checkpoint.weights[f"layers.{index}.attention.position_bias"], tensors["r_r_bias"][heads])
    assert difference(checkpoint, transformer_xl_log_probs(masked(tensors, kept, options.head_dim), args, ids), ids) <= TOLERANCE


def test_biases_and_positions_are_not_swapped() -> None:
    tensors, args = transformer_xl_source(PLAIN)
    ids = tokens(PLAIN)
    expected = transformer_xl_log_probs(tensors, args, ids)
    swapped = {**tensors, "r_w_bias": tensors["r_r_bias"], "r_r_bias": tensors["r_w_bias"]}
    assert difference(convert(swapped, args).checkpoint, expected, ids) > 0.01


@pytest.mark.parametrize(("clamp_len", "clamp"), [(-1, None), (0, None), (1, 1), (15, 15)])
def test_clamp(clamp_len: int, clamp: int | None) -> None:
    tensors, args = transformer_xl_source(replace(PLAIN, clamp_len=clamp_len))
    assert convert(tensors, args).checkpoint.spec.layers[0].attention.position == Sinusoid(clamp)


def test_tied_tensors_are_stored_once() -> None:
    one = convert(*transformer_xl_source(OPTIONS["div-1-cutoffs"])).checkpoint
    assert not {"head.0", "head.1", "head.2"} & set(one.weights)  # row ranges of the one embedding table
    several = convert(*transformer_xl_source(ADAPTIVE)).checkpoint
    assert {name for name in several.weights if name.endswith("projection")} == {
        "embedding.0.projection",
        "embedding.1.projection",
        "embedding.2.projection",
        "head.0.projection",  # Q_0 is untied
    }


# --- settings


@pytest.mark.parametrize("setting", ["pre_lnorm", "same_length", "clamp_len", "mem_len", "tgt_len", "cutoffs"])
def test_what_the_file_cannot_tell_must_be_given(setting: str) -> None:
    tensors, args = transformer_xl_source(replace(OPTIONS["div-1-cutoffs"], same_length=False))
    rest = {name: value for name, value in args.items() if name != setting}
    problems = refused(tensors, rest)
    assert len(problems) == 1 and f"option {setting}" in problems[0] and "nothing" in problems[0]
    assert convert(tensors, rest, **{setting: args[setting]}).checkpoint.spec == convert(tensors, args).checkpoint.spec


def test_all_of_it_is_asked_for_at_once() -> None:
    tensors, _ = transformer_xl_source(PLAIN)
    problems = "\n".join(refused(tensors, {}))
    assert all(f"option {name}" in problems for name in ("pre_lnorm", "same_length", "clamp_len", "mem_len"))
    options = {"pre_lnorm": False, "same_length": True, "clamp_len": -1, "mem_len": 12}
    assert convert(tensors, {}, **options).checkpoint.spec == convert(*transformer_xl_source(PLAIN)).checkpoint.spec


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("n_layer", 3),
        ("n_head", 4),
        ("d_head", 9),
        ("d_model", 25),
        ("d_inner", 21),
        ("d_embed", 23),
        ("n_token", 38),
        ("div_val", 4),
        ("cutoffs", [9, 21]),
        ("ext_len", 4),
        ("attn_type", 1),
        ("pre_lnorm", 1),
        ("same_length", "yes"),
        ("mem_len", -1),
        ("mem_len", 2**30),
        ("clamp_len", 1.5),
        ("tie_projs", "all"),
        ("tie_projs", [True, True, True]),
    ],
)
def test_a_contradiction_of_the_file_is_an_error_that_names_the_setting(setting: str, value: Any) -> None:
    tensors, args = transformer_xl_source(ADAPTIVE)
    problems = refused(tensors, args | {setting: value})
    assert len(problems) == 1 and setting in problems[0]


def test_ties_that_the_file_does_not_have() -> None:
    for name in ("untied", "div-1-cutoffs-untied", "div-2-untied"):
        tensors, args = transformer_xl_source(OPTIONS[name])
        assert "tie_weight" in refused(tensors, args | {"tie_weight": True})[0]


def test_same_length_without_memory_is_refused_by_name() -> None:
    tensors, args = transformer_xl_source(PLAIN)
    problems = refused(tensors, args | {"mem_len": 0})
    assert len(problems) == 1 and "mem_len" in problems[0] and "same_length" in problems[0]


@pytest.mark.parametrize("cutoffs", [[], [9], [9, 20, 30], [20, 9], [0, 9], [9, 37], "9,20", [9, 2**80]])
def test_cutoffs_must_fit_the_file(cutoffs: Any) -> None:
    tensors, args = transformer_xl_source(OPTIONS["div-1-cutoffs"])
    problems = refused(tensors, args | {"cutoffs": cutoffs})
    assert all("cutoffs" in problem for problem in problems)


def test_cutoffs_without_cluster_entries() -> None:
    tensors, args = transformer_xl_source(PLAIN)
    assert "cutoffs" in refused(tensors, args | {"cutoffs": [9]})[0]


def test_arguments_of_the_scripts() -> None:
    tensors, args = transformer_xl_source(PLAIN)
    scripted = args | {"d_embed": -1, "not_tied": False, "tied": True, "adaptive": False, "lr": 0.1, "work_dir": "x"}
    assert convert(tensors, scripted).notes == []
    del args["same_length"]
    assert any("same_length" in problem for problem in refused(tensors, args | {"same_lenght": True}))
    assert any("remark" in note for note in convert(tensors, args | {"remark": 1, "same_length": True}).notes)
    assert "option colour" in refused(tensors, args, same_length=True, colour="red")[0]


# --- other layouts and damaged files


@pytest.mark.parametrize(
    ("extra", "word"),
    [
        ("r_emb", "attn_type 1"),
        ("r_bias", "attn_type 1"),
        ("layers.0.dec_attn.kv_net.weight", "attn_type 2"),
        ("layers.0.dec_attn.r_w_bias", "Hugging Face"),
        ("transformer.layers.0.dec_attn.r_net.weight", "Hugging Face"),
        ("out_layer.weight", "sampled softmax"),
    ],
)
def test_relatives_of_the_format_are_refused_by_name(extra: str, word: str) -> None:
    tensors, args = transformer_xl_source(PLAIN)
    tensors[extra] = np.zeros(3, np.float32)
    problems = refused(tensors, args)
    assert len(problems) == 1 and word in problems[0]
    assert CONVERTER.recognises(["transformer.layers.0.dec_attn.r_r_bias"])


def test_all_problems_are_reported_together() -> None:
    tensors, args = transformer_xl_source(PLAIN)
    del tensors["layers.0.dec_attn.o_net.weight"]
    tensors["layers.1.pos_ff.layer_norm.bias"] = np.zeros(23, np.float32)
    tensors["layers.1.extra"] = np.zeros(3, np.float32)
    tensors["r_r_bias"] = tensors["r_r_bias"] * np.float32(np.nan)
    problems = "\n".join(refused(tensors, args | {"n_head": 8, "ext_len": 3}, colour="red"))
    for part in ("layers.0.dec_attn.o_net", "layers.1.pos_ff.layer_norm.bias", "layers.1.extra", "r_r_bias", "n_head", "ext_len", "colour"):
        assert part in problems
    assert problems.count("\n") == 6


@pytest.mark.parametrize("name", ["post-norm", "div-2", "div-1-cutoffs-narrow"])
def test_any_tensor_missing_or_of_another_rank_is_an_error_that_names_it(name: str) -> None:
    tensors, args = transformer_xl_source(OPTIONS[name])
    for victim in tensors:
        if victim != "pos_emb.inv_freq":
            problems = refused({n: a for n, a in tensors.items() if n != victim}, args)
            assert any(victim in problem for problem in problems)
        assert refused({**tensors, victim: tensors[victim][None]}, args)
        assert refused({**tensors, victim: tensors[victim].reshape(-1)[:0]}, args)


def test_an_odd_hidden_size_is_refused() -> None:
    tensors, args = transformer_xl_source(replace(PLAIN, hidden=11))
    assert any("even" in problem for problem in refused(tensors, args))


def test_a_file_without_layers() -> None:
    assert refused({"r_w_bias": np.zeros((2, 4), np.float32)}, {})
    assert not CONVERTER.recognises(["layers.0.attn.q_proj.weight.data"])
