"""Directories as transformers 4 and 5 write them differently, and models beside those converted: the right numbers or one clear error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engine
from engine.errors import ConversionError, InputError
from tests.oracle import hugging_face as oracle
from tests.support.hugging_face_sources import Source, encoder, gpt2

pytest.importorskip("torch")
MASKED = {"bert": ("cls.predictions.decoder", "cls.predictions.bias"), "xlm-roberta": ("lm_head.decoder", "lm_head.bias")}
IDS = [7, 3, 11, 5, 2]


def expected(source: Source) -> np.ndarray:
    ones = np.ones((source.layers, source.heads))
    hidden = oracle.hidden_states(source.config, source.tensors, IDS, [1] * len(IDS), [0] * len(IDS), ones)
    return oracle.task_logits(source.config, source.tensors, hidden)


# --- decoders of masked language models


@pytest.mark.parametrize("kind", MASKED)
def test_an_untied_decoder_adds_its_own_bias(kind: str, tmp_path: Path) -> None:
    """transformers 5 stores both, trained apart; 4 has one tensor by two names."""
    source = encoder(kind, "ForMaskedLM", tie_word_embeddings=False)
    decoder, bias = MASKED[kind]
    source.tensors[f"{decoder}.bias"] = source.tensors[bias] + np.float32(1)
    with engine.load(source.write(tmp_path)) as model:
        assert np.abs(model.logits([IDS])[0] - expected(source)).max() < 1e-5


@pytest.mark.parametrize("kind", MASKED)
def test_a_tied_decoder_may_stand_in_the_file_again(kind: str, tmp_path: Path) -> None:
    source = encoder(kind, "ForMaskedLM")
    decoder, bias = MASKED[kind]
    words = next(array for name, array in source.tensors.items() if name.endswith("word_embeddings.weight"))
    source.tensors |= {f"{decoder}.weight": words, f"{decoder}.bias": source.tensors[bias]}
    with engine.load(source.write(tmp_path / "same")) as model:
        assert np.abs(model.logits([IDS])[0] - expected(source)).max() < 1e-5
    source.tensors |= {f"{decoder}.weight": words[::-1].copy(), f"{decoder}.bias": source.tensors[bias] + np.float32(1)}
    with pytest.raises(ConversionError) as caught:
        engine.load(source.write(tmp_path / "other"))
    assert f"config tie_word_embeddings: expected false, for {decoder}.weight differs from the word embeddings" in str(caught.value)
    assert f"{decoder}.bias: expected the numbers of {bias}" in str(caught.value)
    with engine.load(source.write(tmp_path / "untied", tie_word_embeddings=False)) as model:
        assert model.spec.head is not None


def test_gpt2_words_that_differ_from_a_tied_decoder(tmp_path: Path) -> None:
    source = gpt2()
    source.tensors["lm_head.weight"] = source.tensors["transformer.wte.weight"]
    engine.load(source.write(tmp_path / "same")).close()
    source.tensors["lm_head.weight"] = -source.tensors["transformer.wte.weight"]
    with pytest.raises(ConversionError, match=r"config tie_word_embeddings: expected false, for lm_head\.weight differs"):
        engine.load(source.write(tmp_path / "other"))


# --- per_layer_config


def test_every_layer_named_and_no_number_for_all(tmp_path: Path) -> None:
    source = encoder()
    told = {f"{layer:02}": {"num_attention_heads": count} for layer, count in enumerate((2, 3, 1))}
    source.write(tmp_path, {0: [2], 2: [1, 2]}, num_attention_heads=None, per_layer_config=told)
    with engine.load(tmp_path) as model:
        assert [(a.heads, a.source_heads, a.head_dim) for a in (layer.attention for layer in model.spec.layers)] == [
            (2, 3, 4),
            (3, 3, 4),
            (1, 3, 4),
        ]


def test_parts_of_a_layer_left_out(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"layer 1: skip: expected nothing: .* num_attention_heads 0, found \['attention'\]"):
        engine.load(encoder().write(tmp_path, per_layer_config={"1": {"skip": ["attention"]}}))


# --- ELECTRA


def test_a_discriminator_gives_hidden_states(tmp_path: Path) -> None:
    source = encoder("electra", "Model", architectures=["ElectraForPreTraining"])
    source.tensors = {f"electra.{name}": array for name, array in source.tensors.items()}
    for part, rows in (("dense", 12), ("dense_prediction", 1)):
        source.tensors[f"discriminator_predictions.{part}.weight"] = np.ones((rows, 12), np.float32)
        source.tensors[f"discriminator_predictions.{part}.bias"] = np.ones(rows, np.float32)
    report = engine.convert(source.write(tmp_path / "source"), tmp_path / "out")
    assert "discriminator_predictions not read: the head that tells replaced tokens" in report.notes
    with engine.load(tmp_path / "out") as model:
        assert model.spec.task == "hidden" and model.encode([IDS]).shape == (1, 5, 12)


# --- what is not converted


@pytest.mark.parametrize("kind", ["albert", "llama", "modernbert", "deberta-v2", 5])
@pytest.mark.parametrize("format", ["auto", "huggingface"])
def test_another_model_type_is_told_what_there_is(kind: Any, format: str, tmp_path: Path) -> None:
    """Whatever its tensors are called."""
    source = Source({"model_type": kind}, {"model.layers.0.self_attn.q_proj.weight": np.ones((2, 2), np.float32)})
    with pytest.raises(ConversionError) as caught:
        engine.convert(source.write(tmp_path / "source"), tmp_path / "out", format=format)
    every = "bert, roberta, xlm-roberta, camembert, distilbert, electra, gpt2"
    assert [str(problem) for problem in caught.value.problems] == [f"config model_type: expected one of {every}, found {kind!r}"]


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        ("bert", {"position_embedding_type": "relative_key_query"}, "config position_embedding_type: expected absolute, the only one"),
        ("bert", {"architectures": ["BertForNextSentencePrediction"]}, "config architectures: expected a name that ends with Model"),
        ("electra", {"embedding_size": 6}, "config embedding_size: expected 12, the hidden size: embeddings of another size are not"),
        ("gpt2", {"architectures": ["GPT2ForSequenceClassification"]}, "GPT2LMHeadModel or GPT2Model, the language model; no other head"),
        ("gpt2", {"architectures": ["GPT2ForTokenClassification"]}, "GPT2LMHeadModel or GPT2Model, the language model; no other head"),
    ],
)
def test_a_variant_is_refused_before_its_tensors(source: str, settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Tensors that only the variant has are no further problems."""
    made = gpt2(**settings) if source == "gpt2" else encoder(source, **settings)
    made.tensors |= {"of.the.variant": np.ones(3, np.float32)}
    with pytest.raises(ConversionError) as caught:
        engine.load(made.write(tmp_path))
    assert len(caught.value.problems) == 1 and message in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "task", "asked", "message"),
    [
        ("camembert", "ForTokenClassification", "masked_lm", "token_classification or hidden: the file has no lm_head.dense.weight"),
        ("electra", "ForMaskedLM", "sequence_classification", "masked_lm or hidden: the file has no classifier.out_proj.weight"),
        ("distilbert", "Model", "token_classification", "hidden: the file has no classifier.weight"),
    ],
)
def test_a_task_whose_head_is_not_there_is_one_problem(kind: str, task: str, asked: str, message: str, tmp_path: Path) -> None:
    source = encoder(kind, task).write(tmp_path)
    with pytest.raises(ConversionError) as caught:
        engine.load(source, task=asked)
    assert [str(problem) for problem in caught.value.problems] == [f"option task: expected task {message}, found {asked!r}"]
    with engine.load(source, task="hidden") as model, pytest.raises(InputError, match="a causal language model"):
        model.generate([1, 2])
