"""Hugging Face directories: the fixture against transformers' own outputs, random ones against the oracle, each trap by its name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import engine
from engine.errors import ConversionError, InputError
from engine.export.hugging_face import export_hf
from tests.oracle import hugging_face as oracle
from tests.support.command import headcount
from tests.support.hugging_face_sources import Source, encoder

pytest.importorskip("torch")
FIXTURE = Path(__file__).parents[1] / "fixtures" / "hf-bert-tokcls"
BOUND = 2e-4  # what the fixture allows; the random models below stay a hundred times under it
PRUNED = {0: [1], 2: [0, 2]}
MASK = np.array([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]])


def fixture_logits(path: Path, **settings: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    expected = np.load(FIXTURE / "expected.npz")
    with engine.load(path, **settings) as model:
        seen = expected["attention_mask"] == 1
        return model.logits(expected["input_ids"], expected["attention_mask"])[seen], {
            name: expected[name][seen] for name in ("logits_dense", "logits_pruned")
        }


def expected_logits(
    source: Source, ids: np.ndarray, mask: np.ndarray, types: np.ndarray | None = None, heads: Any = None
) -> list[np.ndarray]:
    """By the oracle, one sequence at a time; a head's rows only where the mask shows them."""
    heads = np.ones((source.layers, source.heads)) if heads is None else heads
    rows = []
    for row, seen, kinds in zip(ids, mask, np.zeros_like(ids) if types is None else types, strict=True):
        hidden = oracle.hidden_states(source.config, source.tensors, row, seen, kinds, heads)
        logits = oracle.task_logits(source.config, source.tensors, hidden)
        rows.append(logits if logits.ndim == 1 else logits[seen == 1])
    return rows


def random_ids(source: Source, shape: Sequence[int], seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(2, source.config["vocab_size"], shape)


def agree(model: engine.Model, source: Source, heads: Any = None, bound: float = 5e-6) -> None:
    """The model's logits are the oracle's for two sequences, one padded."""
    ids = random_ids(source, MASK.shape)
    found = model.logits(ids, MASK)
    for row, seen, expected in zip(found, MASK, expected_logits(source, ids, MASK, heads=heads), strict=True):
        assert np.abs((row if row.ndim == 1 else row[seen == 1]) - expected).max() < bound


# --- the fixture


def test_dense_fixture() -> None:
    found, expected = fixture_logits(FIXTURE / "dense")
    assert np.abs(found - expected["logits_dense"]).max() <= BOUND
    assert np.abs(found - expected["logits_pruned"]).max() > 0.1


def test_pruned_fixture_with_original_head_numbers(tmp_path: Path) -> None:
    report = engine.convert(FIXTURE / "pruned", tmp_path / "out")
    assert report.kept == ((0, 2, 3, 5), (0, 1, 2, 3, 4, 5), (1, 4)) and report.source_heads == (6, 6, 6)
    for path in (FIXTURE / "pruned", tmp_path / "out"):
        found, expected = fixture_logits(path)
        assert np.abs(found - expected["logits_pruned"]).max() <= BOUND


@pytest.mark.parametrize("masked", [False, True])
def test_dense_fixture_with_its_mask_is_the_pruned_one(masked: bool, tmp_path: Path) -> None:
    mask = np.load(FIXTURE / "expected.npz")["head_mask"]
    np.save(tmp_path / "mask.npy", mask)
    found, expected = fixture_logits(FIXTURE / "dense", heads=tmp_path / "mask.npy", masked=masked)
    assert np.abs(found - expected["logits_pruned"]).max() <= BOUND


def test_the_command_converts_inspects_and_verifies(tmp_path: Path) -> None:
    assert headcount("convert", FIXTURE / "pruned", tmp_path / "out").status == 0
    inspected = headcount("inspect", tmp_path / "out", "--json")
    assert inspected.status == 0 and json.loads(inspected.out)["kept"] == [[0, 2, 3, 5], [0, 1, 2, 3, 4, 5], [1, 4]]
    done = headcount("verify", tmp_path / "out", "--against", FIXTURE / "pruned", "--json")
    assert done.status == 0 and json.loads(done.out)["logits"] < 1e-5 and "nll" not in json.loads(done.out)
    wrong = headcount("verify", tmp_path / "out", "--against", FIXTURE / "dense")
    assert wrong.status == 1 and "BEYOND" in wrong.out


# --- where heads may be named


def heads_as(layout: str, source: Source, directory: Path) -> Path:
    """The same pruned weights, the heads told in one of the ways."""
    counts = [source.heads - len(PRUNED.get(layer, [])) for layer in range(source.layers)]
    told: dict[str, Any] = {
        "pruned_heads": {"pruned_heads": {str(layer): gone for layer, gone in PRUNED.items()}},
        "per_layer_config": {"per_layer_config": {f"{layer:02}": {"num_attention_heads": counts[layer]} for layer in PRUNED}},
        "num_attention_heads_per_layer": {"num_attention_heads_per_layer": counts},
        "layer_head_num": {"layer_head_num": counts},
        "kept_heads": {
            "kept_heads": [[h for h in range(source.heads) if h not in PRUNED.get(layer, [])] for layer in range(source.layers)]
        },
        "shapes": {},
    }
    return source.write(directory, PRUNED, **told[layout])


@pytest.mark.parametrize(
    "layout", ["pruned_heads", "per_layer_config", "num_attention_heads_per_layer", "layer_head_num", "kept_heads", "shapes"]
)
def test_every_way_to_tell_heads_gives_the_same_model(layout: str, tmp_path: Path) -> None:
    source = encoder()
    with engine.load(heads_as(layout, source, tmp_path)) as model:
        assert [layer.attention.heads for layer in model.spec.layers] == [2, 3, 1]
        assert [layer.attention.source_heads for layer in model.spec.layers] == [3, 3, 3]
        if layout in ("pruned_heads", "kept_heads"):
            assert [layer.attention.kept for layer in model.spec.layers] == [(0, 2), (0, 1, 2), (1,)]
        agree(model, source, source.mask(PRUNED))


@pytest.mark.parametrize("told", [{"head_dim": 4}, {"num_attention_heads_per_layer": [2, 3, 1]}])
def test_the_number_of_source_heads_follows_from_the_size_of_a_head(told: dict[str, Any], tmp_path: Path) -> None:
    source = encoder()
    with engine.load(source.write(tmp_path, PRUNED, num_attention_heads=None, **told)) as model:
        assert [(layer.attention.heads, layer.attention.source_heads) for layer in model.spec.layers] == [(2, 3), (3, 3), (1, 3)]
        agree(model, source, source.mask(PRUNED))


@pytest.mark.parametrize("layout", ["pruned_heads", "per_layer_config", "num_attention_heads_per_layer", "kept_heads"])
def test_heads_that_contradict_the_tensors_name_both(layout: str, tmp_path: Path) -> None:
    source = encoder()
    heads_as(layout, source, tmp_path)
    save_file(source.tensors, tmp_path / "model.safetensors")  # dense after all
    with pytest.raises(ConversionError) as caught:
        engine.load(tmp_path)
    text = str(caught.value)
    assert (
        f"config {layout}: layer 0: expected 3 heads, the 12 rows of bert.encoder.layer.0.attention.self.query.weight / 4, found 2 heads"
        in text
    )
    assert f"config {layout}: layer 2" in text and "layer 1:" not in text


def test_two_settings_that_contradict_each_other_are_an_error(tmp_path: Path) -> None:
    source = encoder().write(tmp_path, PRUNED, pruned_heads={"0": [1], "2": [0, 2]}, num_attention_heads_per_layer=[3, 3, 1])
    with pytest.raises(ConversionError, match="config num_attention_heads_per_layer: layer 0: expected 2 heads"):
        engine.load(source)
    source = encoder().write(tmp_path, PRUNED, pruned_heads={"0": [1], "2": [0, 2]}, kept_heads=[[0, 1], [0, 1, 2], [1]])
    with pytest.raises(
        ConversionError, match=r"config pruned_heads: layer 0: expected heads \[0, 1\] left, as kept_heads says, found \[0, 2\]"
    ):
        engine.load(source)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pruned_heads": {"0": [7]}}, "config pruned_heads: layer 0: expected heads from 0 to 2, found 7"),
        ({"pruned_heads": {"0": [-1]}}, "expected heads from 0 to 2, found -1"),
        ({"pruned_heads": {"0": [1, 1]}}, "expected each head once"),
        ({"pruned_heads": {"9": [1]}}, "config pruned_heads: layer '9': expected each layer from 0 to 2"),
        ({"pruned_heads": [1]}, "config pruned_heads: expected an object by layer"),
        ({"pruned_heads": {"0": 1}}, "expected a list of head numbers"),
        ({"per_layer_config": {"00": {"num_attention_heads": 3, "rope": 1}}}, "config per_layer_config: layer 0: rope"),
        ({"per_layer_config": {"0": {}, "00": {}}}, "at most once"),
        ({"num_attention_heads_per_layer": [3, 3]}, "a number of heads for each of 3 layers"),
        ({"num_attention_heads": 5}, "expected a divisor of the hidden size 12, found 5"),
        ({"num_attention_heads": None}, "option num_attention_heads"),
        ({"hidden_size": 13}, "config hidden_size: expected 12"),
        ({"num_hidden_layers": 2}, "config num_hidden_layers: expected 3"),
        ({"vocab_size": 40}, "config vocab_size: expected 41"),
        ({"intermediate_size": 11}, "config intermediate_size: layer 0: expected 10"),
        ({"hidden_act": "mish"}, "config hidden_act: expected one of relu"),
        ({"position_embedding_type": "relative_key"}, "config position_embedding_type: expected absolute"),
        ({"is_decoder": True}, "config is_decoder"),
        ({"id2label": {"0": "A"}}, "config id2label: expected 5 labels, the rows of classifier.weight, found 1"),
        ({"architectures": ["BertForMultipleChoice"]}, "config architectures: expected a name that ends with"),
        ({"architectures": ["BertForMaskedLM"]}, "the file has no cls.predictions.transform.dense.weight, found 'BertForMaskedLM'"),
        ({"architectures": ["BertForSequenceClassification"]}, "bert.pooler.dense.weight: expected"),
        ({"model_type": "albert"}, "config model_type: expected one of bert, roberta"),
    ],
)
def test_bad_configuration(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=message):
        engine.load(encoder().write(tmp_path, **settings))


def test_all_problems_come_together(tmp_path: Path) -> None:
    source = encoder()
    del source.tensors["bert.encoder.layer.1.output.dense.bias"]
    source.tensors["surplus"] = np.zeros(3, np.float32)
    source.tensors["classifier.bias"] = source.tensors["classifier.bias"] * np.float32(np.nan)
    with pytest.raises(ConversionError) as caught:
        engine.load(source.write(tmp_path, pruned_heads={"0": [9]}))
    for part in ("layer.1.output.dense.bias", "surplus", "classifier.bias[0]", "heads from 0 to 2", "model.safetensors"):
        assert part in str(caught.value)


# --- layers without heads


@pytest.mark.parametrize("stored", ["empty", "absent"])
def test_a_layer_without_heads_is_its_output_bias(stored: str, tmp_path: Path) -> None:
    source = encoder()
    pruned = {1: [0, 1, 2]}
    source.write(tmp_path, pruned, pruned_heads={"1": [0, 1, 2]})
    if stored == "absent":
        held = load_file(tmp_path / "model.safetensors")
        save_file({name: array for name, array in held.items() if array.size}, tmp_path / "model.safetensors")
    with engine.load(tmp_path) as model:
        assert [layer.attention.heads for layer in model.spec.layers] == [3, 0, 3]
        agree(model, source, source.mask(pruned))


def test_a_model_without_any_head_is_an_error(tmp_path: Path) -> None:
    every = {layer: [0, 1, 2] for layer in range(3)}
    with pytest.raises(ConversionError, match="at least one head in the model"):
        engine.load(encoder().write(tmp_path, every, pruned_heads={str(layer): heads for layer, heads in every.items()}))
    with pytest.raises(InputError, match="at least one head left in the model"):
        engine.load(encoder().write(tmp_path / "dense"), heads=np.zeros((3, 3)))
    engine.convert(tmp_path / "dense", tmp_path / "engine", heads=[[0], [1], []])
    for left in (np.zeros((3, 3)), [[1], [0], [2]]):  # the second: none of those the model still has
        with pytest.raises(InputError, match="at least one head left in the model, found none: all are pruned"):
            engine.load(tmp_path / "engine", heads=left)
        with pytest.raises(InputError, match="at least one head left"):
            export_hf(tmp_path / "engine", tmp_path / "out", heads=left)
    assert not (tmp_path / "out").exists()


# --- files


def test_the_tensors_are_chosen_as_the_library_chooses(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    source = encoder()
    source.write(tmp_path)
    other = {name: torch.from_numpy(array * 0) for name, array in source.tensors.items()}
    torch.save(other, tmp_path / "pytorch_model.bin")
    torch.save({"step": torch.zeros(1)}, tmp_path / "optimizer.pt")
    with engine.load(tmp_path) as model:
        agree(model, source)


@pytest.mark.parametrize("kind", ["bin", "safetensors shards", "bin shards"])
def test_other_files(kind: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    source = encoder()
    source.write(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch_tensors = {name: torch.from_numpy(array) for name, array in source.tensors.items()}
    torch_tensors["bert.embeddings.position_ids"] = torch.arange(23)[None]  # a buffer older versions kept
    names = list(torch_tensors)
    parts = {"1": names[::2], "2": names[1::2]}
    suffix = "safetensors" if kind.startswith("safe") else "bin"
    if kind == "bin":
        torch.save(torch_tensors, tmp_path / "pytorch_model.bin")
    else:
        stem = "model" if suffix == "safetensors" else "pytorch_model"
        for part, held in parts.items():
            if suffix == "bin":
                torch.save({name: torch_tensors[name] for name in held}, tmp_path / f"{stem}-{part}.bin")
            else:
                save_file({name: torch_tensors[name].numpy() for name in held}, tmp_path / f"{stem}-{part}.safetensors")
        placed = {name: f"{stem}-{part}.{suffix}" for part, held in parts.items() for name in held}
        (tmp_path / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    with engine.load(tmp_path) as model:
        agree(model, source)
    if "shards" in kind:
        (tmp_path / f"{stem}-2.{suffix}").unlink()
        with pytest.raises(ConversionError, match="-2"):
            engine.load(tmp_path)


def test_names_of_old_norms(tmp_path: Path) -> None:
    source = encoder()
    source.write(tmp_path)
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): array
        for name, array in source.tensors.items()
    }
    save_file(old, tmp_path / "model.safetensors")
    with engine.load(tmp_path) as model:
        agree(model, source)


def test_a_file_alone_says_what_is_missing(tmp_path: Path) -> None:
    shutil.copy(FIXTURE / "dense" / "model.safetensors", tmp_path / "model.safetensors")
    with pytest.raises(ConversionError, match="nothing: no config"):
        engine.load(tmp_path / "model.safetensors")
    with engine.load(tmp_path / "model.safetensors", config=FIXTURE / "dense" / "config.json") as model:
        assert model.spec.task == "token_classification"
