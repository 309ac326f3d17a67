"""The FAIR converter against its fixture and a float64 forward of the source's own state dict, option by option, trap by trap."""

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
from engine.formats.fair import CONVERTER, _window
from engine.spec import Vocabulary
from tests.support.engine_side import one_by_one, torch_runner, whole
from tests.support.fair_sources import FairOptions, fair_log_probs, fair_source

FIXTURE = Path(__file__).parents[1] / "fixtures" / "fair-pers"
TOLERANCE = 1e-4
SPANS = ((0.9, 0.05, 0.3), (0.2, 0.0, 0.45))
PERSISTENT = FairOptions(persistent=17, z=SPANS)
FEED_FORWARD = FairOptions(z=SPANS)
ADAPTIVE = FairOptions(persistent=5, z=SPANS, cutoffs=(9, 20, 29))
OPTIONS = {
    "persistent-spans": PERSISTENT,
    "persistent-no-spans": FairOptions(persistent=1),
    "feed-forward-spans": FEED_FORWARD,
    "feed-forward-no-spans": FairOptions(),
    "adaptive-tied": ADAPTIVE,
    "adaptive-untied": replace(ADAPTIVE, tied=False, persistent=0),
    "adaptive-div-4": FairOptions(hidden=32, heads=4, persistent=3, cutoffs=(11, 24), div_value=4),
    "adaptive-one-cutoff": FairOptions(cutoffs=(36,)),
    "one-head": FairOptions(heads=1, hidden=10, z=((0.4,), (0.1,)), persistent=2),
    "seven-heads": FairOptions(heads=7, hidden=28, layers=1, persistent=3, z=((0.1, 0, 0.2, 1, 0.3, 0.02, 0.6),)),
    "trimmed": FairOptions(span=200, z=((0.1, 0.2, 0.02), (0.5, 0.3, 0.1)), persistent=4),  # windows 72 and 136
    "span-1": FairOptions(span=1, z=((1, 0.5, 0), (0, 1, 1)), ramp=1),
    "closed-head": FairOptions(z=((-1, 0.3, 0.2), (0, -2, 1))),
    "one-layer": FairOptions(layers=1, persistent=63, ramp=1, z=((0.5, 1, 0),)),
}


def convert(tensors: Mapping[str, np.ndarray], args: Mapping[str, Any], **options: Any) -> Converted:
    return CONVERTER.read(tensors, args, options, Path("checkpoint.pt"))


def checkpoint_of(options: FairOptions) -> Checkpoint:
    return convert(*fair_source(options)).checkpoint


def tokens(options: FairOptions, count: int = 65) -> np.ndarray:
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
        name = f"layers.{index}.attn.proj_out.weight"
        columns = np.repeat([h in heads for h in range(tensors[name].shape[1] // dim)], dim)
        result[name] = tensors[name] * columns.astype(np.float32)
    return result


# --- numbers


def test_fixture_is_reproduced_by_load_and_by_convert(tmp_path: Path) -> None:
    expected = np.load(FIXTURE / "expected.npz")
    engine.convert(FIXTURE, tmp_path / "out")
    for path in (FIXTURE, tmp_path / "out"):
        with engine.load(path, dtype="float32", backend="torch") as model:
            found = model.log_probs(expected["ids"])[:, :-1]
            score = model.score(expected["ids"])
        assert np.abs(found - expected["log_probs"]).max() <= 2e-4
        assert np.abs(score.token_nll - expected["token_nll"]).max() <= 2e-4


def test_the_independent_forward_agrees_with_the_fixture() -> None:
    """Otherwise the tests below would compare the engine with nothing."""
    import json

    import torch

    state = torch.load(FIXTURE / "checkpoint.pt", weights_only=True)["model"]
    tensors = {name.removeprefix("module."): tensor.numpy() for name, tensor in state.items()}
    expected = np.load(FIXTURE / "expected.npz")
    found = fair_log_probs(tensors, json.loads((FIXTURE / "args.json").read_text()), expected["ids"][0][:-1], block=32)
    assert np.abs(found - expected["log_probs"][0]).max() <= 5e-5


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_computes_what_the_source_computes(name: str) -> None:
    options = OPTIONS[name]
    tensors, args = fair_source(options)
    ids = tokens(options, 160 if options.span > 100 else 65)
    assert difference(convert(tensors, args).checkpoint, fair_log_probs(tensors, args, ids), ids) <= TOLERANCE


@pytest.mark.parametrize("length", [1, 2, 63])
def test_odd_lengths(length: int) -> None:
    tensors, args = fair_source(PERSISTENT)
    ids = tokens(PERSISTENT, length)
    assert difference(convert(tensors, args).checkpoint, fair_log_probs(tensors, args, ids), ids) <= TOLERANCE


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_sources_load_as_the_numbers_they_hold(dtype: str) -> None:
    import ml_dtypes

    kind = np.dtype(np.float16) if dtype == "float16" else np.dtype(ml_dtypes.bfloat16)
    tensors, args = fair_source(ADAPTIVE)
    tensors = {name: array.astype(kind) for name, array in tensors.items()}
    ids = tokens(ADAPTIVE)
    assert difference(convert(tensors, args).checkpoint, fair_log_probs(tensors, args, ids), ids) <= TOLERANCE


# --- traps


@pytest.mark.parametrize("options", [PERSISTENT, FEED_FORWARD, OPTIONS["trimmed"]], ids=["persistent", "feed-forward", "trimmed"])
def test_start_of_memory_zero_rows_take_part_in_the_softmax(options: FairOptions) -> None:
    tensors, args = fair_source(options)
    ids = tokens(options, 9)
    checkpoint = convert(tensors, args).checkpoint
    assert difference(checkpoint, fair_log_probs(tensors, args, ids), ids) <= TOLERANCE
    assert difference(checkpoint, fair_log_probs(tensors, args, ids, phantoms=False), ids) > 0.05
    assert {layer.attention.start for layer in checkpoint.spec.layers} == {"attended_zeros"}


@pytest.mark.parametrize("change", [{"sees_self": True}, {"window": 39}], ids=["self", "one-key-too-few"])
def test_visible_keys_are_distances_1_to_L_and_self_is_excluded(change: dict[str, Any]) -> None:
    options = FairOptions(persistent=2, span=40)
    tensors, args = fair_source(options)
    ids = tokens(options)
    expected = fair_log_probs(tensors, args, ids)
    checkpoint = convert(tensors, args).checkpoint
    attention = checkpoint.spec.layers[0].attention
    assert (attention.window, attention.sees_self) == (40, False)
    assert difference(checkpoint, expected, ids) <= TOLERANCE
    layers = tuple(replace(layer, attention=replace(layer.attention, **change)) for layer in checkpoint.spec.layers)
    wrong = replace(checkpoint, spec=replace(checkpoint.spec, layers=layers))
    assert difference(wrong, expected, ids) > 1e-3


@pytest.mark.parametrize("name", ["persistent-spans", "feed-forward-no-spans", "adaptive-tied", "trimmed"])
def test_streaming_equals_blocks(name: str) -> None:
    options = OPTIONS[name]
    tensors, args = fair_source(options)
    ids = tokens(options)
    blocks = [fair_log_probs(tensors, args, ids, block) for block in (1, 7, 64, 65)]
    assert max(float(np.abs(block - blocks[0]).max()) for block in blocks) <= 1e-9
    assert np.abs(one_by_one(torch_runner(convert(tensors, args).checkpoint), ids) - blocks[0]).max() <= TOLERANCE


def test_cluster_order_is_reversed_and_entries_read_the_projected_state() -> None:
    tensors, args = fair_source(ADAPTIVE)
    ids = tokens(ADAPTIVE)
    expected = fair_log_probs(tensors, args, ids)
    checkpoint = convert(tensors, args).checkpoint
    head = checkpoint.spec.head
    assert isinstance(head, Vocabulary)
    assert (head.order, head.cluster_input) == ("descending", "projected")
    for change in ({"order": "ascending"}, {"cluster_input": "hidden"}):
        wrong = replace(checkpoint, spec=replace(checkpoint.spec, head=replace(head, **change)))
        assert difference(wrong, expected, ids) > 0.05


def test_renormalisation_adds_1e_8() -> None:
    """Position logits so far apart that what the mask leaves is of the size of the 1e-8 itself."""
    options = FairOptions(z=((0.05, 0.02, 0.0), (0.0, 0.05, 0.02)), ramp=2, seed=3)
    tensors, args = fair_source(options)
    tensors["key_pe"] = tensors["key_pe"] * np.float32(8)
    ids = tokens(options)
    checkpoint = convert(tensors, args).checkpoint
    assert difference(checkpoint, fair_log_probs(tensors, args, ids), ids) <= 1e-3
    assert difference(checkpoint, fair_log_probs(tensors, args, ids, epsilon=1e-30), ids) > 0.05


def test_persistent_logit_has_no_bias_and_no_net_scale() -> None:
    """Stored as the source's own numbers; wrong by √head_dim either way the answers would differ."""
    tensors, args = fair_source(PERSISTENT)
    checkpoint = convert(tensors, args).checkpoint
    key = tensors["layers.1.attn.attn.persistent_memory.key"]
    assert np.array_equal(checkpoint.weights["layers.1.attention.persistent_keys"], key.transpose(0, 2, 1))
    assert not any(name.endswith(("content_bias", "position_bias", "query_bias")) for name in checkpoint.weights)
    ids = tokens(PERSISTENT)
    expected = fair_log_probs(tensors, args, ids)
    for factor in (np.sqrt(8), 1 / np.sqrt(8)):
        scaled = {n: a * np.float32(factor) if n.endswith("persistent_keys") else a for n, a in checkpoint.weights.items()}
        assert difference(replace(checkpoint, weights=scaled), expected, ids) > 0.01


@pytest.mark.parametrize("kept", [[[1, 2], [0]], [[2], []], [[], []], [[0, 2], [1, 2]]], ids=str)
@pytest.mark.parametrize("name", ["persistent-spans", "feed-forward-spans", "adaptive-untied", "trimmed"])
def test_kept_sets_that_are_not_a_prefix_equal_the_masked_source(name: str, kept: list[list[int]]) -> None:
    """Also where the widest head goes: the window stays that of all heads, as it is in the masked source."""
    options = OPTIONS[name]
    tensors, args = fair_source(options)
    ids = tokens(options)
    expected = fair_log_probs(masked(tensors, kept, options.hidden // options.heads), args, ids)
    checkpoint = prune(convert(tensors, args).checkpoint, kept)
    assert [layer.attention.spans for layer in checkpoint.spec.layers] == [
        tuple(float(np.float32(options.z[index][head]) * np.float32(options.span)) for head in heads)  # type: ignore[index]
        for index, heads in enumerate(kept)
    ]
    assert difference(checkpoint, expected, ids) <= TOLERANCE


@pytest.mark.parametrize(
    ("z", "span", "ramp", "window"),
    [
        (1.0, 160, 8, 160),
        (0.1, 160, 80, 160),  # float32(0.1) · 160 is just above 16: 17 + 80 leaves 63 to trim, which rounds to none
        (0.0, 160, 32, 32),  # 128 trimmed
        (0.0, 160, 33, 96),  # 127 to trim, 64 trimmed
        (0.25, 8192, 32, 2112),
        (-5.0, 128, 32, 64),  # nothing visible: still never all trimmed
        (9.0, 64, 32, 64),
        (0.0, 1, 1, 1),
    ],
)
def test_window_follows_the_widest_span(z: float, span: int, ramp: int, window: int) -> None:
    assert _window([float(np.float32(z)), -100.0], span, ramp) == window


def test_position_table_rows_are_distances() -> None:
    tensors, args = fair_source(PERSISTENT)
    table = convert(tensors, args).checkpoint.weights["position.table"]
    for distance in (1, 2, 40):
        assert np.array_equal(table[distance - 1], tensors["key_pe"][0, :, 40 - distance])


def test_tied_clusters_are_stored_once() -> None:
    tied, untied = checkpoint_of(ADAPTIVE), checkpoint_of(replace(ADAPTIVE, tied=False))
    assert "head.0" not in tied.weights and "head.3.projection" not in tied.weights
    assert {"head.0", "head.0.projection", "head.3", "head.3.projection"} <= set(untied.weights)
    assert tied.spec.embedding.scale == pytest.approx(np.sqrt(24)) and checkpoint_of(PERSISTENT).spec.embedding.scale == 1


# --- settings


def test_internal_names_and_groups_mean_the_same_as_flags() -> None:
    tensors, args = fair_source(ADAPTIVE)
    groups = {
        "model_params": {"nb_layers": 2, "hidden_size": 24, "nb_heads": 3, "attn_span": 40, "block_size": 16, "inner_hidden_size": 1},
        "adapt_span_params": {"adapt_span_enabled": True, "adapt_span_ramp": 8, "adapt_span_cache": False, "adapt_span_loss": 0.0},
        "adapt_io_params": {"adapt_io_enabled": True, "adapt_io_cutoffs": [9, 20, 29], "adapt_io_divval": 2, "adapt_io_tied": True},
        "pers_mem_params": {"pers_mem_size": 5},
        "optim_params": {"lr": 0.1},
    }
    dashed = {"--" + name.replace("_", "-"): value for name, value in args.items()}
    flat = convert(tensors, args)
    for config in (groups, dashed):
        other = convert(tensors, config)
        assert other.checkpoint.spec == flat.checkpoint.spec
        assert other.notes == []
    assert convert(tensors, {}, adapt_span_enabled=True, adapt_span_ramp=8).checkpoint.spec == flat.checkpoint.spec


def test_the_default_ramp_is_used_and_noted() -> None:
    tensors, args = fair_source(PERSISTENT)
    del args["adapt_span_ramp"]
    converted = convert(tensors, args)
    assert converted.checkpoint.spec.layers[0].attention.span_ramp == 32
    assert any("adapt_span_ramp" in note and "32" in note for note in converted.notes)
    assert convert(tensors, args, adapt_span_ramp=8).notes == []
    assert len(convert(tensors, args | {"adapt_span_ramp": 4}, adapt_span_ramp=8).notes) == 1  # the option replaces the configuration's


def test_without_spans_nothing_has_to_be_given() -> None:
    tensors, _ = fair_source(FairOptions(persistent=3))
    converted = convert(tensors, {})
    attention = converted.checkpoint.spec.layers[0].attention
    assert (attention.window, attention.spans, attention.span_ramp, converted.notes) == (40, None, None, [])


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("nlayers", 3),
        ("hid_sz", 25),
        ("nheads", 4),
        ("attn_span", 41),
        ("pers_mem_size", 4),
        ("adapt_span", False),
        ("adapt_io", False),
        ("adapt_io_cutoffs", [9, 20, 30]),
        ("adapt_io_divval", 4),
        ("adapt_span_ramp", 0),
        ("adapt_span_ramp", "8"),
        ("adapt_span_cache", 1),
        ("block_sz", 0),
        ("vocab_size", 38),
    ],
)
def test_a_contradiction_of_the_file_is_an_error_that_names_the_setting(setting: str, value: Any) -> None:
    tensors, args = fair_source(ADAPTIVE)
    problems = refused(tensors, args | {setting: value})
    assert len(problems) == 1
    assert setting in problems[0]


def test_the_feed_forward_width_counts_only_without_persistent_memory() -> None:
    tensors, args = fair_source(FEED_FORWARD)
    assert "inner_hid_sz" in refused(tensors, args | {"inner_hid_sz": 1})[0]
    tensors, args = fair_source(PERSISTENT)
    convert(tensors, args | {"inner_hid_sz": 1})


def test_tied_in_the_configuration_but_not_in_the_file() -> None:
    tensors, args = fair_source(replace(ADAPTIVE, tied=False))
    assert "adapt_io_tied" in refused(tensors, args | {"adapt_io_tied": True})[0]


def test_two_names_of_one_setting_must_agree() -> None:
    tensors, args = fair_source(PERSISTENT)
    convert(tensors, args | {"nb_heads": 3})
    assert "one value" in refused(tensors, args | {"adapt_span_params": {"adapt_span_ramp": 9}})[0]


def test_unknown_names() -> None:
    tensors, args = fair_source(PERSISTENT)
    assert any("comment" in note for note in convert(tensors, args | {"comment": "best"}).notes)
    del args["adapt_span_ramp"]
    assert "adapt_span_ramp" in refused(tensors, args | {"adapt_span_rmap": 8})[0]
    assert "option colour" in refused(tensors, args, colour="red")[0]


# --- damaged files


def test_all_problems_are_reported_together() -> None:
    tensors, args = fair_source(PERSISTENT)
    del tensors["layers.0.attn.proj_key.weight"]
    tensors["layers.1.norm1.bias"] = np.zeros(23, np.float32)
    tensors["layers.1.attn.extra"] = np.zeros(3, np.float32)
    tensors["out_emb.bias"] = tensors["out_emb.bias"].astype(np.int64)
    problems = "\n".join(refused(tensors, args | {"nheads": 8}, colour="red"))
    for part in ("layers.0.attn.proj_key.weight", "layers.1.norm1.bias", "layers.1.attn.extra", "out_emb.bias", "nheads", "colour"):
        assert part in problems
    assert problems.count("\n") == 5


@pytest.mark.parametrize("part", ["current_val", "mask_template"])
def test_an_alias_that_differs_is_refused(part: str) -> None:
    tensors, args = fair_source(PERSISTENT)
    name = f"layers.0.attn.attn.persistent_memory.adaptive_span._mask.{part}"
    tensors[name] = tensors[name] + np.float32(0.25)
    assert name in refused(tensors, args)[0]


def test_feed_forward_beside_persistent_memory_is_unused_and_refused() -> None:
    tensors, args = fair_source(PERSISTENT)
    more, _ = fair_source(FEED_FORWARD)
    tensors["layers.0.ff.fc1.weight"] = more["layers.0.ff.fc1.weight"]
    assert "layers.0.ff.fc1.weight" in refused(tensors, args)[0]


@pytest.mark.parametrize(("part", "value"), [("current_val", np.nan), ("current_val", np.inf), ("mask_template", 1)])
def test_a_mask_with_another_number(part: str, value: float) -> None:
    tensors, args = fair_source(FEED_FORWARD)
    name = f"layers.1.attn.attn.adaptive_span._mask.{part}"
    tensors[name] = tensors[name].copy()
    tensors[name][1] = value
    assert name in refused(tensors, args)[0]


@pytest.mark.parametrize("name", ["persistent-spans", "adaptive-tied", "feed-forward-spans"])
def test_any_tensor_missing_or_of_another_rank_is_an_error_that_names_it(name: str) -> None:
    tensors, args = fair_source(OPTIONS[name])
    for victim in tensors:
        if "persistent_memory.adaptive_span" in victim or victim.endswith("mask_template"):
            continue  # copies and constants may be left out
        problems = refused({n: a for n, a in tensors.items() if n != victim}, args)
        assert any(victim in problem for problem in problems)
        assert refused({**tensors, victim: tensors[victim][None]}, args)
        assert refused({**tensors, victim: tensors[victim].reshape(-1)[:0]}, args)


def test_a_file_without_layers() -> None:
    assert refused({"key_pe": np.zeros((1, 8, 4), np.float32)}, {})
    assert CONVERTER.recognises(["key_pe"]) and not CONVERTER.recognises(["layers.0.attn.q_proj.weight.data"])
