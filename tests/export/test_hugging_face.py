"""export hf: the directory transformers 4 would have written, bit for bit, and refusals that leave nothing behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import engine
from engine import checkpoint as checkpoints
from engine.errors import CheckpointError, ConversionError, EngineError, Unsupported
from engine.export.hugging_face import export_hf
from engine.formats.open import open_checkpoint as checkpoint_of
from tests.support.command import headcount, write_source
from tests.support.hugging_face_sources import encoder, gpt2

pytest.importorskip("torch")
FIXTURE = Path(__file__).parents[1] / "fixtures" / "hf-bert-tokcls"
PRUNED = {0: [1], 1: [0, 1, 2], 2: [0, 2]}
MODELS = {
    f"{kind} {task}": (kind, task)
    for kind in ("bert", "xlm-roberta", "electra", "distilbert")
    for task in ("Model", "ForTokenClassification", "ForSequenceClassification", "ForMaskedLM", "ForQuestionAnswering")
}


def files(directory: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    return json.loads((directory / "config.json").read_text()), load_file(directory / "model.safetensors")


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert sorted(found) == sorted(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array), name


@pytest.mark.parametrize("model", [*MODELS, "gpt2"])
def test_there_and_back_is_bit_for_bit(model: str, tmp_path: Path) -> None:
    """Dense source and a mask → engine directory → the pruned layout; and that read again gives itself."""
    source = gpt2() if model == "gpt2" else encoder(*MODELS[model])
    pruned = {layer: heads for layer, heads in PRUNED.items() if layer < source.layers}
    np.save(tmp_path / "mask.npy", source.mask(pruned))
    engine.convert(source.write(tmp_path / "dense"), tmp_path / "engine", heads=tmp_path / "mask.npy")
    for path in (tmp_path / "engine", tmp_path / "hf"):
        export_hf(path, tmp_path / "hf" if path.name == "engine" else tmp_path / "again")
    config, tensors = files(tmp_path / "hf")
    told = {name: value for name, value in source.config.items() if value is not None}
    assert config == {**told, "pruned_heads": {str(layer): heads for layer, heads in pruned.items()}}
    assert_same(tensors, source.pruned(pruned))
    assert files(tmp_path / "again")[0] == config
    assert_same(files(tmp_path / "again")[1], tensors)


def test_the_fixture(tmp_path: Path) -> None:
    done = headcount("export", "hf", FIXTURE / "dense", tmp_path / "out", "--heads", _mask(tmp_path))
    assert done.status == 0 and "BertForTokenClassification" in done.out and "6 heads in pruned_heads" in done.out
    config, tensors = files(tmp_path / "out")
    expected, pruned = files(FIXTURE / "pruned")
    assert config == expected
    assert_same(tensors, pruned)
    with safe_open(tmp_path / "out" / "model.safetensors", "np") as held:
        assert held.metadata() == {"format": "pt"}


def _mask(directory: Path) -> Path:
    np.save(directory / "mask.npy", np.load(FIXTURE / "expected.npz")["head_mask"])
    return directory / "mask.npy"


def test_counts_become_pruned_heads_and_the_answers_stay(tmp_path: Path) -> None:
    source = encoder()
    source.write(tmp_path / "v5", {0: [0]}, per_layer_config={"00": {"num_attention_heads": 2}})
    report = export_hf(tmp_path / "v5", tmp_path / "v4")
    config, _ = files(tmp_path / "v4")
    assert "per_layer_config" not in config and config["pruned_heads"] == report.pruned_heads == {"0": [2]}
    with engine.load(tmp_path / "v5") as before, engine.load(tmp_path / "v4") as after:
        assert np.array_equal(before.logits([[3, 4, 5]]), after.logits([[3, 4, 5]]))


def test_scales_are_multiplied_into_the_output(tmp_path: Path) -> None:
    source = encoder()
    scales = source.mask({0: [1]}) * np.float32(0.5)
    with engine.load(source.write(tmp_path / "dense"), heads=scales) as model:
        before = model.logits([[3, 4, 5]])
    export_hf(tmp_path / "dense", tmp_path / "out", heads=scales)
    with engine.load(tmp_path / "out") as model:
        assert np.abs(model.logits([[3, 4, 5]]) - before).max() < 1e-6
        assert not any(layer.attention.scaled for layer in model.spec.layers)


def test_a_task_asked_for_names_the_architecture(tmp_path: Path) -> None:
    source = encoder("xlm-roberta", "ForTokenClassification")
    path = source.write(tmp_path / "dense")
    report = engine.convert(path, tmp_path / "engine", task="hidden")
    assert any("classifier.bias, classifier.weight" in note for note in report.notes)
    exported = export_hf(tmp_path / "engine", tmp_path / "out")
    assert exported.architecture == "XLMRobertaModel" and "embeddings.word_embeddings.weight" in files(tmp_path / "out")[1]
    with engine.load(path) as labelled, engine.load(tmp_path / "out") as bare:
        assert np.array_equal(labelled.encode([[3, 4, 5]]), bare.encode([[3, 4, 5]]))
    with pytest.raises(ConversionError, match=r"the file has no lm_head\.dense\.weight"):
        engine.load(path, task="masked_lm")


@pytest.mark.parametrize("task", ["ForTokenClassification", "ForQuestionAnswering", "ForMaskedLM"])
def test_a_head_trained_here_names_its_labels(task: str, tmp_path: Path) -> None:
    """Fine-tuning leaves the names in the provenance; the source's own labels and head are gone."""
    from engine.prune.encoder import with_labels  # these know torch
    from engine.prune.task import model_labels

    trained = with_labels(checkpoint_of(encoder("bert", task, num_labels=None).write(tmp_path / "source")), ("ADJ", "NOUN", "X"), seed=1)
    checkpoints.save(trained, tmp_path / "engine")
    assert export_hf(tmp_path / "engine", tmp_path / "out", heads={0: [1]}).architecture == "BertForTokenClassification"
    config, tensors = files(tmp_path / "out")
    assert config["id2label"] == {"0": "ADJ", "1": "NOUN", "2": "X"} and config["label2id"] == {"ADJ": 0, "NOUN": 1, "X": 2}
    assert tensors["classifier.weight"].shape == (3, 12) and "qa_outputs.weight" not in tensors
    assert model_labels(checkpoint_of(tmp_path / "out")).names == ("ADJ", "NOUN", "X")


def test_the_words_of_a_pretraining_checkpoint_are_a_masked_language_model(tmp_path: Path) -> None:
    """Its other head is not in the engine directory, so the architecture that asks for it is not written."""
    source = encoder("bert", "ForMaskedLM", architectures=["BertForPreTraining"])
    source.tensors |= {"cls.seq_relationship.weight": np.ones((2, 12), np.float32), "cls.seq_relationship.bias": np.ones(2, np.float32)}
    assert export_hf(source.write(tmp_path / "source"), tmp_path / "out").architecture == "BertForMaskedLM"


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("bert", {"do_lower_case": False, "strip_accents": None, "tokenize_chinese_chars": False}),
        ("electra", {"do_lower_case": True, "strip_accents": False, "tokenize_chinese_chars": True}),
        ("gpt2", {"add_prefix_space": True}),
    ],
)
def test_settings_of_the_tokenizer_are_told_again(kind: str, told: dict[str, Any], tmp_path: Path) -> None:
    """transformers puts its defaults over a tokenizer.json: without them a cased BERT would read all text in lower case."""
    source = (gpt2() if kind == "gpt2" else encoder(kind)).write(tmp_path / "source")
    (source / "tokenizer_config.json").write_text(json.dumps(told))
    if kind == "gpt2":
        (source / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "Ġ": 2}))
        (source / "merges.txt").write_text("")
    else:
        (source / "vocab.txt").write_text("[UNK]\na\n")
    for _ in range(2):  # the second over the first
        export_hf(source, tmp_path / "out", force=True)
        settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
        assert settings == {**told, "model_max_length": 29 if kind == "gpt2" else 23}
    engine.convert(source, tmp_path / "engine")
    (tmp_path / "engine" / "tokenizer.json").write_text("[]")
    with pytest.raises(CheckpointError, match="a tokenizer the tokenizers library reads"):
        export_hf(tmp_path / "engine", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_what_has_no_place_in_the_layout(tmp_path: Path) -> None:
    engine.convert(write_source(tmp_path / "aiha"), tmp_path / "engine")
    with pytest.raises(Unsupported, match="one converted from a Hugging Face directory"):
        export_hf(tmp_path / "engine", tmp_path / "out")
    uneven = encoder()
    for name in ("intermediate.dense.weight", "intermediate.dense.bias"):
        uneven.tensors[f"bert.encoder.layer.1.{name}"] = uneven.tensors[f"bert.encoder.layer.1.{name}"][:7]
    uneven.tensors["bert.encoder.layer.1.output.dense.weight"] = np.ascontiguousarray(
        uneven.tensors["bert.encoder.layer.1.output.dense.weight"][:, :7]
    )
    uneven.write(tmp_path / "uneven", per_layer_config={"1": {"intermediate_size": 7}})
    with pytest.raises(Unsupported, match=r"layers\.1\.feed_forward"):
        export_hf(tmp_path / "uneven", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_its_own_directories_are_replaced(tmp_path: Path) -> None:
    path = encoder().write(tmp_path / "dense")
    export_hf(path, tmp_path / "out")
    with pytest.raises(CheckpointError, match="one that exists"):
        export_hf(path, tmp_path / "out")
    export_hf(path, tmp_path / "out", force=True)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    for force in (True, False):
        with pytest.raises(EngineError):
            export_hf(path, tmp_path / "out", force=force)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    with pytest.raises(ConversionError, match="does not hold the source"):
        export_hf(path, path, force=True)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["dense", "out"]
