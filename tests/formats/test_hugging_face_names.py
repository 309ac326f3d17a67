"""Tensors by other names than the architecture's: wrappers, entries of a file, tied copies, gates beside the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import engine
from engine.errors import ConversionError
from tests.formats.test_hugging_face_settings import agrees
from tests.support.hugging_face_sources import Source, encoder, gpt2

MODEL = encoder(seed=5)


def torch_state(source: Source, prefix: str = "") -> dict[str, torch.Tensor]:
    return {prefix + name: torch.from_numpy(array.copy()) for name, array in source.tensors.items()}


def write(source: Source, folder: Path, content: Any) -> Path:
    """A directory whose pytorch_model.bin holds `content`."""
    source.write(folder)
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")
    return folder


def notes_of(path: Path) -> list[str]:
    with engine.load(path) as model:
        return list(model.explain().notes)


# --- wrappers


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "module.model.network.", "student.", "a.b."]
)
@pytest.mark.parametrize("source", [MODEL, encoder("distilbert", "Model"), gpt2()], ids=["bert", "bare distilbert", "gpt2"])
def test_prefixes_in_front_of_every_name(prefix: str, source: Source, tmp_path: Path) -> None:
    if source.config["architectures"] == ["DistilBertModel"]:
        source.write(tmp_path / "plain")
        write(source, tmp_path / "wrapped", torch_state(source, prefix))
        with engine.load(tmp_path / "plain") as plain, engine.load(tmp_path / "wrapped") as wrapped:
            assert np.array_equal(plain.encode([[3, 4, 5]]), wrapped.encode([[3, 4, 5]]))
        return
    agrees(write(source, tmp_path, torch_state(source, prefix)), source)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_prefixes_in_shards(suffix: str, tmp_path: Path) -> None:
    """An index names tensors as its files do."""
    MODEL.write(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    names = list(MODEL.tensors)
    parts = {1: names[::2], 2: names[1::2]}
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    for part, held in parts.items():
        file = tmp_path / f"{stem}-{part}.{suffix}"
        if suffix == "bin":
            torch.save({f"_orig_mod.{name}": torch.from_numpy(MODEL.tensors[name]) for name in held}, file)
        else:
            save_file({f"_orig_mod.{name}": MODEL.tensors[name] for name in held}, file)
    placed = {f"_orig_mod.{name}": f"{stem}-{part}.{suffix}" for part, held in parts.items() for name in held}
    (tmp_path / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": placed}))
    agrees(tmp_path, MODEL)


def test_names_of_no_model_are_one_problem(tmp_path: Path) -> None:
    """A configuration of BERT, tensors of RoBERTa: no cascade, and no RoBERTa run as BERT."""
    state = {name.replace("bert.", "roberta.", 1): value for name, value in torch_state(MODEL).items()}
    with pytest.raises(ConversionError) as caught:
        engine.load(write(MODEL, tmp_path, state))
    (problem,) = caught.value.problems
    assert problem.where == "tensors" and "bert.encoder.layer.0." in problem.expected
    assert problem.found.startswith("roberta.embeddings.") and problem.found.endswith(f"and {len(state) - 4} more")


def test_two_models_in_one_state_dict(tmp_path: Path) -> None:
    other = {name: 2 * value for name, value in torch_state(MODEL).items()}
    average = {f"ema_model.{name}": value for name, value in other.items()}
    path = write(MODEL, tmp_path / "average", torch_state(MODEL, "model.") | average)
    agrees(path, MODEL)
    assert notes_of(path) == ["the tensors under ema_model. are not read: an average of the trained ones"]
    teacher = {f"teacher.{name}": value for name, value in other.items()}
    with pytest.raises(ConversionError, match=r"tensors: expected those of one model, found several, under '', 'teacher\.'"):
        engine.load(write(MODEL, tmp_path / "teacher", torch_state(MODEL) | teacher))


# --- entries of a file


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model_state", "module", "model"])
def test_entries_that_hold_the_state_dict(key: str, tmp_path: Path) -> None:
    agrees(write(MODEL, tmp_path / "a", {key: torch_state(MODEL), "epoch": 3, "step": torch.tensor(4)}), MODEL)
    agrees(write(MODEL, tmp_path / "b", {"state_dict": {key: torch_state(MODEL, "module.")}}), MODEL)


def test_averages_beside_the_trained_tensors(tmp_path: Path) -> None:
    other = {name: 2 * value for name, value in torch_state(MODEL).items()}
    both = write(MODEL, tmp_path / "both", {"ema_state_dict": other, "model_state_dict": torch_state(MODEL)})
    agrees(both, MODEL)
    assert notes_of(both) == ["the tensors under model_state_dict are read, not those under ema_state_dict"]
    alone = write(MODEL, tmp_path / "alone", {"model_ema": torch_state(MODEL), "epoch": 3})
    agrees(alone, MODEL)
    assert "an average of the trained ones" in notes_of(alone)[0]


# --- tied copies


def test_the_old_name_of_gpt2s_output_matrix(tmp_path: Path) -> None:
    source = gpt2()
    words = source.tensors["transformer.wte.weight"]
    copied = gpt2()
    copied.tensors["lm_head.decoder.weight"] = words.copy()
    agrees(copied.write(tmp_path / "same"), source)
    copied.tensors["lm_head.decoder.weight"] = -words
    with pytest.raises(ConversionError, match=r"expected false, for lm_head\.decoder\.weight differs from the word embeddings"):
        engine.load(copied.write(tmp_path / "other"))
    untied = gpt2(tie_word_embeddings=False)
    untied.tensors["lm_head.decoder.weight"] = -words
    same = gpt2(tie_word_embeddings=False)
    same.tensors["lm_head.weight"] = -words
    agrees(untied.write(tmp_path / "untied"), same)
    untied.tensors["lm_head.weight"] = words.copy()
    with pytest.raises(ConversionError, match=r"lm_head\.decoder\.weight: expected the numbers of lm_head\.weight"):
        engine.load(untied.write(tmp_path / "two"))


# --- gates


def test_gate_weights_leave_the_choice_to_heads(tmp_path: Path) -> None:
    """Differentiable subset pruning keeps w [layers, heads] in every file, and what it chose in mask<K>.pt."""
    source, mask = encoder("bert", "ForSequenceClassification"), np.array([[1, 0, 1], [0, 1, 1], [1, 1, 0]], np.float32)
    gated = encoder("bert", "ForSequenceClassification", architectures=["GatedBertForSequenceClassification"])
    gated.tensors["w"] = np.random.default_rng(0).standard_normal((3, 3))
    path = gated.write(tmp_path / "gated")
    torch.save(torch.from_numpy(mask), path / "mask5.pt")
    agrees(path, source, mask, heads=path / "mask5.pt")
    agrees(path, source, heads={})
    with pytest.raises(ConversionError, match=r"gate weights w: expected heads=, such as the mask<K>\.pt"):
        engine.load(path)
    gated.tensors["w"] = np.ones((2, 3))
    with pytest.raises(ConversionError, match=r"w: expected \[3, 3\], found \[2, 3\]"):
        engine.load(gated.write(tmp_path / "other"), heads={})


def test_hard_concrete_gates_are_applied(tmp_path: Path) -> None:
    """Without noise: clip(1.2 · sigmoid(log_a) - 0.1, 0, 1)."""
    source, gated = encoder(), encoder()
    log_a = np.array([[2.0, -5.0, 0.3], [-4.0, 3.0, 0.1], [1.0, 90.0, -1000.0]])
    for layer, row in enumerate(log_a):
        gated.tensors[f"bert.encoder.layer.{layer}.attention.self.gate.log_a"] = row.astype(np.float32).reshape(1, 3, 1, 1)
    gated.tensors["w"] = np.zeros((3, 3))
    gates = np.clip(1.2 * 0.5 * (1 + np.tanh(log_a / 2)) - 0.1, 0, 1)
    agrees(gated.write(tmp_path / "a"), source, gates)
    with engine.load(tmp_path / "a") as model:
        assert [layer.attention.kept for layer in model.spec.layers] == [(0, 2), (1, 2), (0, 1)]
        assert any("6 of 9 heads are open" in note for note in model.explain().notes)
    agrees(tmp_path / "a", source, gates * [[1, 1, 0]] * np.ones((3, 1)), heads=[[0, 1]] * 3)
    gated.tensors["bert.encoder.layer.0.attention.self.gate.log_a"] = np.zeros((1, 5, 1, 1), np.float32)
    with pytest.raises(ConversionError, match=r"gate\.log_a: expected \[1, 3, 1, 1\], found \[1, 5, 1, 1\]"):
        engine.load(gated.write(tmp_path / "b"))
