"""Directories that do not say what they are: no model_type, bert_config.json, no task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engine
from engine.errors import ConversionError
from engine.export.hugging_face import export_hf
from tests.formats.test_hugging_face_settings import agrees
from tests.support.hugging_face_sources import Source, encoder, gpt2

pytest.importorskip("torch")
SILENT: dict[str, Any] = {"model_type": None, "architectures": None}


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "distilbert", "gpt2"])
def test_the_tensors_tell_the_model_type(kind: str, tmp_path: Path) -> None:
    source = gpt2() if kind == "gpt2" else encoder(kind)
    path = source.write(tmp_path / "source", **SILENT)
    agrees(path, source)
    report = engine.convert(path, tmp_path / "out")
    assert any(note.startswith(f"model_type {kind}: ") and "-o model_type=NAME" in note for note in report.notes)
    assert export_hf(tmp_path / "out", tmp_path / "hf").architecture.lower().startswith(kind)
    agrees(tmp_path / "hf", source)


def test_the_class_tells_it_before_the_tensors(tmp_path: Path) -> None:
    source = encoder("xlm-roberta")
    path = source.write(tmp_path, model_type=None)
    agrees(path, source)
    with engine.load(path) as model:
        assert model.explain().notes[0].startswith("model_type xlm-roberta")


def test_the_configuration_of_before_transformers(tmp_path: Path) -> None:
    """bert_config.json, without model_type; other files of tensors beside it are not in its way."""
    source = encoder("bert", "ForMaskedLM")
    path = source.write(tmp_path, **SILENT)
    (path / "training_args.bin").write_bytes(b"of the trainer")
    agrees(path, source)
    (path / "config.json").rename(path / "bert_config.json")
    agrees(path, source)


def test_an_option_says_it(tmp_path: Path) -> None:
    source = encoder("roberta", "Model")
    path = source.write(tmp_path / "bare", **SILENT)
    with pytest.raises(ConversionError) as caught:  # BERT's names, and positions that start elsewhere
        engine.load(path)
    assert "config model_type: expected one of bert, roberta" in str(caught.value) and "-o model_type=NAME" in str(caught.value)
    with engine.load(path, model_type="roberta") as model:
        assert model.spec.embedding.position_offset == 2
    other = encoder()
    agrees(other.write(tmp_path / "other", model_type="masked_bert"), other, model_type="bert")
    with pytest.raises(ConversionError, match=r"option model_type: expected one of bert, .*, found 'bart'"):
        engine.load(path, model_type="bart")


# --- the task

CHUNKS = {str(index): name for index, name in enumerate(("O", "B-PER", "I-PER", "B-LOC", "I-LOC"))}


@pytest.mark.parametrize(
    ("settings", "task", "told"),
    [
        ({}, "sequence_classification", "the tensors, a classifier beside a pooler"),
        ({"id2label": CHUNKS}, "token_classification", "the labels of id2label"),
        ({"finetuning_task": "ner"}, "token_classification", "finetuning_task 'ner'"),
        ({"finetuning_task": "mnli"}, "sequence_classification", "the tensors, a classifier beside a pooler"),
    ],
)
def test_a_guessed_task_is_noted(settings: dict[str, Any], task: str, told: str, tmp_path: Path) -> None:
    """Old files of taggers have a pooler too, which nothing reads."""
    source = encoder("bert", "ForSequenceClassification")
    with engine.load(source.write(tmp_path, architectures=None, **settings)) as model:
        assert model.spec.task == task
        assert model.explain().notes == (f"task {task}: guessed by {told}; -o task=NAME (task=) says another",)
    if task == "token_classification":
        tagger = Source(source.config | {"architectures": ["BertForTokenClassification"]}, source.tensors)
        agrees(tmp_path, tagger)


def test_a_task_that_is_said_is_no_guess(tmp_path: Path) -> None:
    source = encoder("bert", "ForSequenceClassification")
    with engine.load(source.write(tmp_path)) as model:
        assert model.explain().notes == () and np.isfinite(model.logits([[1, 2]])).all()
