"""What the aiha-lab converter refuses, and says: settings that are missing or contradict the shapes, tensors that are not the format's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.errors import ConversionError
from engine.formats.read import read_source
from tests.support.aiha_reference import log_probs
from tests.support.converted import close, run, tokens
from tests.support.sources import AihaSource, write_state

SMALL = AihaSource()
ADAPTIVE = AihaSource(cutoffs=(6, 13), div_value=2)


def refused(path: Path, **options: object) -> str:
    with pytest.raises(ConversionError) as caught:
        read_source(path, **options)  # type: ignore[arg-type]
    return str(caught.value)


# --- settings


@pytest.mark.parametrize("name", ["mem_length", "same_length"])
def test_setting_that_nothing_gives_is_named(name: str, tmp_path: Path) -> None:
    path = replace(SMALL, drop=(name,)).write(tmp_path)
    assert f"option {name}: expected" in refused(path)
    checkpoint, _ = read_source(path, **{name: getattr(SMALL, name)})
    close(run(checkpoint, tokens(SMALL)), log_probs(SMALL, tokens(SMALL)))


def test_segments_need_their_length(tmp_path: Path) -> None:
    assert "option seq_length" in refused(replace(SMALL, same_length=False, drop=("seq_length",)).write(tmp_path))
    assert "same_length" not in refused(replace(SMALL, same_length=False, drop=("seq_length",)).write(tmp_path)).split("\n")[0]


def test_option_replaces_configuration_and_says_so(tmp_path: Path) -> None:
    _, report = read_source(SMALL.write(tmp_path), mem_length=3)
    assert any("mem_length: the option 3 replaces 6" in note for note in report.notes)


def test_disagreement_among_loaders_is_noted(tmp_path: Path) -> None:
    config = SMALL.config()
    config["dataloader"]["train_dataloader"] = {"mem_length": 192}
    checkpoint, report = read_source(SMALL.write(tmp_path), config=config)
    assert checkpoint.spec.layers[0].attention.window == 7
    assert any("test_dataloader is used; train_dataloader has 192" in note for note in report.notes)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("num_layers", 3), ("num_heads", 4), ("hidden_dim", 13), ("feedforward_dim", 6), ("max_len", 16), ("cutoffs", [6, 14])],
        *[("div_value", 4), ("share_r_bias", True), ("attn_bias", True), ("pre_norm", False), ("div_value", "4"), ("cutoffs", 6)],
    ],
)
def test_configuration_that_contradicts_the_shapes(name: str, value: object, tmp_path: Path) -> None:
    config = ADAPTIVE.config()
    config["model"][name] = value
    assert f"{name}: expected" in refused(ADAPTIVE.write(tmp_path), config=config)


def test_window_longer_than_the_position_table(tmp_path: Path) -> None:
    assert "mem_length + 1: expected at most 17, the rows of pos_emb, found 18" in refused(SMALL.write(tmp_path), mem_length=17)
    assert "mem_length + seq_length: expected at most 17" in refused(SMALL.write(tmp_path), mem_length=14, same_length=False)
    assert read_source(SMALL.write(tmp_path), mem_length=16)[0].spec.layers[0].attention.window == 17


@pytest.mark.parametrize("scale", [True, "2", [1.0], [[1.0, 2.0], [1.0, 2.0]], [float("1e31"), 1.0], [[1, 2, "3"], [1, 2, 3]]])
def test_output_scale_of_the_wrong_kind(scale: object, tmp_path: Path) -> None:
    assert "option output_scale: expected a number, 2 numbers" in refused(SMALL.write(tmp_path), output_scale=scale)


def test_unknown_option_and_unknown_model_setting(tmp_path: Path) -> None:
    assert "option memory: expected one of" in refused(SMALL.write(tmp_path), memory=3)
    config = SMALL.config()
    config["model"]["rotary"] = True
    assert any("model.rotary" in note for note in read_source(SMALL.write(tmp_path), config=config)[1].notes)


@pytest.mark.parametrize("config", [{"model": 3}, {"model": [], "dataloader": "x"}, {"dataloader": {"test_dataloader": 7}}])
def test_configuration_of_the_wrong_shape(config: dict[str, object], tmp_path: Path) -> None:
    assert "expected an object" in refused(SMALL.write(tmp_path), config=config)


# --- tensors


def test_all_problems_are_reported_together(tmp_path: Path) -> None:
    state = SMALL.state()
    del state["layers.1.attn.k_proj.weight.data"]
    state["layers.0.norm.bias.data"] = np.zeros(13, np.float32)
    state["layers.0.attn.extra.data"] = np.zeros(1, np.float32)
    state["layers.1.attn.v_proj.weight.data"] = np.full((12, 12), np.nan, np.float32)
    state["criterion.project.bias.data"] = np.zeros(23, np.int64)
    SMALL.write(tmp_path)
    text = refused(write_state(tmp_path / "checkpoint.ckpt", state), num_heads=5, other=1)
    places = ["layers.1.attn.k_proj.weight.data: expected [12, 12], found nothing", "layers.0.norm.bias.data: expected [12], found [13]"]
    places += ["layers.0.attn.extra.data: expected no such tensor", "layers.1.attn.v_proj.weight.data[0, 0]: expected a finite number"]
    places += ["criterion.project.bias.data: expected float32", "option num_heads: expected 3", "option other: expected one of"]
    assert [place for place in places if place not in text] == []
    assert len(text.splitlines()) == len(places) + 2 and "in checkpoint.ckpt" in text


@pytest.mark.parametrize("name", sorted(ADAPTIVE.state()))
@pytest.mark.parametrize("change", ["missing", "wider", "flat"])
def test_one_wrong_tensor_is_one_clear_error(name: str, change: str, tmp_path: Path) -> None:
    state = dict(ADAPTIVE.state())
    array = state.pop(name)
    if change != "missing":
        state[name] = np.concatenate([array, array], -1) if change == "wider" else array.reshape(-1)[None, None, None, None]
    ADAPTIVE.write(tmp_path)
    text = refused(write_state(tmp_path / "checkpoint.ckpt", state))
    assert name in text
    assert len(text.splitlines()) <= 5


def test_nan_gate_is_an_error(tmp_path: Path) -> None:
    path = replace(SMALL, gates=((0.0, float("nan"), 1.0), (1.0, 1.0, 1.0))).write(tmp_path)
    assert "layers.0.attn.gate.gate.data[1]: expected a finite number, found nan" in refused(path)


def test_square_projection_that_nothing_explains(tmp_path: Path) -> None:
    """A width of hidden size in a tail: only tie_proj can say which way an untied square matrix stands."""
    state = dict(replace(ADAPTIVE, cutoffs=(6,)).state())
    rng = np.random.default_rng(1)
    for name, shape in (("word_emb.tail.0.0", (17, 12)), ("word_emb.tail.0.1", (12, 12)), ("criterion.tail.0.0", (12, 12))):
        state[f"{name}.weight.data"] = rng.standard_normal(shape).astype(np.float32)
    state["criterion.tail.0.1.weight.data"] = state["word_emb.tail.0.0.weight.data"]
    path = write_state(tmp_path / "checkpoint.ckpt", state)
    settings = {"mem_length": 6, "same_length": True}
    assert "criterion.tail.0.0.weight.data: expected the input's own projection" in refused(path, config=settings)
    stored = state["criterion.tail.0.0.weight.data"]
    for tie_proj, expected in ((True, stored), (False, stored.T)):
        checkpoint, _ = read_source(path, config=settings, tie_proj=tie_proj)
        np.testing.assert_array_equal(checkpoint.weights["head.1.projection"], expected)
    state["criterion.tail.0.0.weight.data"] = state["word_emb.tail.0.1.weight.data"].copy()
    checkpoint, _ = read_source(write_state(path, state), config=settings)
    assert checkpoint.spec.head.clusters[1].tied_projection  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_numbers_keep_the_dtype_of_the_source(dtype: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    state = {name: torch.from_numpy(array).to(getattr(torch, dtype)) for name, array in SMALL.state().items()}
    SMALL.write(tmp_path)
    torch.save({"network": state}, tmp_path / "checkpoint.ckpt")
    checkpoint, _ = read_source(tmp_path)
    assert {array.dtype.name for array in checkpoint.weights.values()} == {dtype}
    rounded = {name: array.double().numpy() for name, array in state.items()}
    close(run(checkpoint, tokens(SMALL)), log_probs(SMALL, tokens(SMALL), state=rounded))
