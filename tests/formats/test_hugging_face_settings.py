"""Keys of a config.json: what changes the computation is honoured or refused by name, what is on no list is noted, or refused by strict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engine
from engine.errors import ConversionError, Unsupported
from engine.export.hugging_face import export_hf
from tests.oracle import hugging_face as oracle
from tests.support.command import headcount
from tests.support.hugging_face_sources import Source, encoder, gpt2

pytest.importorskip("torch")
IDS = [7, 3, 11, 5, 2]
STALE = {"_num_labels": 2, "_anything": [1], "num_labels": 7}


def expected(source: Source, heads: np.ndarray | None = None) -> np.ndarray:
    ones = np.ones((source.layers, source.heads)) if heads is None else heads
    if source.config["model_type"] == "gpt2":
        logits = oracle.gpt2_logits(source.config, source.tensors, IDS, ones)
        shifted = logits - logits.max(-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    hidden = oracle.hidden_states(source.config, source.tensors, IDS, [1] * len(IDS), [0] * len(IDS), ones)
    return oracle.task_logits(source.config, source.tensors, hidden)


def found(path: Path, **settings: Any) -> np.ndarray:
    with engine.load(path, dtype="float32", **settings) as model:
        return model.log_probs([IDS])[0] if model.spec.task == "causal_lm" else model.logits([IDS])[0]


def agrees(path: Path, source: Source, factors: np.ndarray | None = None, **settings: Any) -> None:
    """factors [layers, heads] multiply the heads of the oracle."""
    assert np.abs(found(path, **settings) - expected(source, factors)).max() < 1e-5


# --- the size of a head

GONE: dict[int, list[int]] = {0: [1], 1: [1], 2: [1]}


@pytest.mark.parametrize("key", ["head_dim", "attention_head_size", "d_head"])
@pytest.mark.parametrize("gone", [[1], [0, 2]])
def test_heads_that_do_not_make_up_the_hidden_size(key: str, gone: list[int], tmp_path: Path) -> None:
    """All layers pruned to the same number, which the configuration has in place of the source's, with the size of a head."""
    source, pruned = encoder(), dict.fromkeys(range(3), gone)
    path = source.write(tmp_path / "source", pruned, num_attention_heads=3 - len(gone), **{key: 4})
    agrees(path, source, source.mask(pruned))
    with pytest.raises(Unsupported, match=f"{3 - len(gone)} × 4"):  # transformers 4 takes hidden size / heads
        export_hf(path, tmp_path / "out")


def test_sizes_of_a_head_that_differ(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="config attention_head_size: expected 4, as head_dim says, found 6"):
        engine.load(encoder().write(tmp_path, head_dim=4, attention_head_size=6))


def test_a_size_of_a_head_that_no_tensor_agrees_with(tmp_path: Path) -> None:
    """Three heads of 4 make up the 12 rows of every layer; two of 6 would be others."""
    with pytest.raises(ConversionError, match="config attention_head_size: expected 12 / 3 heads, for every layer has 12 rows"):
        engine.load(encoder().write(tmp_path, attention_head_size=6))


def test_a_size_of_heads_that_nothing_tells_is_asked_for(tmp_path: Path) -> None:
    """8 rows of 12 in every layer: two heads of three, or as many of a smaller size; an option says which."""
    source = encoder(hidden_size=12)
    path = source.write(tmp_path / "all", GONE, num_attention_heads=2)
    with pytest.raises(ConversionError, match=r"option head_dim: expected the size of a head: 8 rows .* may be 2 heads of 4"):
        engine.load(path)
    agrees(path, source, source.mask(GONE), head_dim=4)
    agrees(source.write(tmp_path / "some", {0: [1], 2: [0, 2]}), source, source.mask({0: [1], 2: [0, 2]}))  # one layer has them all


# --- what changes the computation


@pytest.mark.parametrize(
    "settings",
    [
        {"layer_norm_type": "no_norm"},
        {"norm_type": "rmsnorm"},
        {"is_causal": True},
        {"pre_norm": True},
        {"sliding_window": 4},
        {"rope_theta": 10000.0},
        {"num_key_value_heads": 1},
        {"quantization_config": {"bits": 8}},
        {"scale_embedding": True},
        {"qkv_bias": False},
        {"position_biased_input": False},
    ],
)
def test_a_value_that_changes_the_computation_is_refused_by_name(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConversionError) as caught:
        engine.load(encoder().write(tmp_path, **settings))
    assert [problem.where for problem in caught.value.problems] == [f"config {next(iter(settings))}"]


@pytest.mark.parametrize(
    "settings",
    [
        {"layer_norm_type": "layer_norm"},
        {"is_causal": False, "pre_norm": False, "sliding_window": None, "num_key_value_heads": 3, "logit_scale": 1.0},
        {"quantization_config": None, "qkv_bias": True, "rope_scaling": None},
    ],
)
def test_the_usual_value_is_no_reason_to_refuse(settings: dict[str, Any], tmp_path: Path) -> None:
    source = encoder()
    agrees(source.write(tmp_path, **settings), source, strict=True)


# --- what changes nothing


@pytest.mark.parametrize("source", [encoder(), gpt2(), encoder("distilbert")], ids=["bert", "gpt2", "distilbert"])
def test_stale_bookkeeping_is_passed_over(source: Source, tmp_path: Path) -> None:
    """transformers 2 and 3 left _num_labels behind; 4 goes by id2label."""
    again = {"n_labels": source.config.get("num_labels", 5), "num_layers": source.layers}
    agrees(source.write(tmp_path, **STALE, **again), source, strict=True)


def test_a_size_by_two_names(tmp_path: Path) -> None:
    """GPT2Config takes num_attention_heads for n_head; the tensors say how many layers there are."""
    source = gpt2()
    agrees(source.write(tmp_path / "a", n_head=None, num_attention_heads=3), source)
    with pytest.raises(ConversionError, match="config num_attention_heads: expected 3, as n_head says, found 2"):
        engine.load(source.write(tmp_path / "b", num_attention_heads=2))
    with engine.load(source.write(tmp_path / "c", num_layers=9)) as model:
        assert model.explain().notes == ("num_layers 9 of the configuration is not used: n_layer and the tensors say the size",)


# --- what is on no list


def test_an_unknown_key_is_noted_and_strict_refuses_it(tmp_path: Path) -> None:
    """Whatever it looks like."""
    path = encoder().write(tmp_path / "source", pruned_head={"0": [1]}, frobnicate=1)
    notes = tuple(f"{key} of the configuration is not known and not used" for key in ("pruned_head", "frobnicate"))
    assert engine.convert(path, tmp_path / "out").notes == notes
    with engine.load(path) as model:
        assert model.explain().notes == notes and f"  note: {notes[0]}" in str(model.explain())
        assert model.explain().to_dict()["notes"] == notes
    for call in (lambda: engine.load(path, strict=True), lambda: engine.convert(path, tmp_path / "strict", strict=True)):
        with pytest.raises(ConversionError) as caught:
            call()
        assert [problem.where for problem in caught.value.problems] == ["config pruned_head", "config frobnicate"]
    assert not (tmp_path / "strict").exists()


def test_the_command_shows_notes_on_standard_error(tmp_path: Path) -> None:
    path = encoder().write(tmp_path / "source", frobnicate=1)
    note = "note: frobnicate of the configuration is not known and not used\n"
    assert headcount("inspect", path).err == note and headcount("inspect", path, "--quiet").err == ""
    assert headcount("verify", tmp_path / "source", "--against", path).err == note
    assert headcount("convert", path, tmp_path / "out", "--strict").status == 1
    assert "config frobnicate" in headcount("inspect", path, "--strict").err
