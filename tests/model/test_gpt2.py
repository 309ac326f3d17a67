"""GPT-2: score, generate and stream against the oracle, dense and pruned, to the end of its positions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engine
from engine.errors import ConversionError, InputError
from tests.oracle import hugging_face as oracle
from tests.support.command import headcount
from tests.support.hugging_face_sources import Source, gpt2

pytest.importorskip("torch")
PRUNED = {0: [1], 1: [0, 1, 2]}
SETTINGS: dict[str, dict[str, Any]] = {
    "as published": {},
    "exact gelu": {"activation_function": "gelu"},
    "scores by layer": {"scale_attn_by_inverse_layer_idx": True},
    "wide": {"layer_norm_epsilon": 1e-3},
}


def expected(source: Source, ids: Any, heads: Any = None) -> np.ndarray:
    """log p(next) [T, vocab] by the oracle."""
    heads = np.ones((source.layers, source.heads)) if heads is None else heads
    logits = oracle.gpt2_logits(source.config, source.tensors, ids, heads)
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def random_ids(source: Source, length: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, source.config["vocab_size"], length)


@pytest.mark.parametrize("settings", SETTINGS)
def test_every_position_of_a_full_sequence(settings: str, tmp_path: Path) -> None:
    source = gpt2(**SETTINGS[settings])
    ids = random_ids(source, 29)
    with engine.load(source.write(tmp_path)) as model:
        assert model.spec.task == "causal_lm" and model.spec.layers[0].attention.window is None
        assert np.abs(model.log_probs([ids])[0] - expected(source, ids)).max() < 1e-5
        nll = -expected(source, ids)[np.arange(28), ids[1:]]
        for segment in (1, 7, None):
            assert np.abs(model.score([ids], segment=segment).token_nll[0] - nll).max() < 1e-5


@pytest.mark.parametrize("layout", ["pruned_heads", "per_layer_config", "shapes", "mask"])
def test_pruned(layout: str, tmp_path: Path) -> None:
    """Heads cut out of c_attn's three blocks and c_proj's rows; one layer has none left."""
    source = gpt2()
    told: dict[str, dict[str, Any]] = {
        "pruned_heads": {"pruned_heads": {"0": [1], "1": [0, 1, 2]}},
        "per_layer_config": {"per_layer_config": {"00": {"n_head": 2}, "01": {"n_head": 0}}},
        "shapes": {},
        "mask": {},
    }
    source.write(tmp_path, {} if layout == "mask" else PRUNED, **told[layout])
    ids = random_ids(source, 17)
    with engine.load(tmp_path, heads=source.mask(PRUNED) if layout == "mask" else None) as model:
        assert [layer.attention.heads for layer in model.spec.layers] == [2, 0]
        assert np.abs(model.log_probs([ids])[0] - expected(source, ids, source.mask(PRUNED))).max() < 1e-5


def test_generation_is_greedy_choice_after_choice_and_ends_with_the_positions(tmp_path: Path) -> None:
    source = gpt2()
    prompt = random_ids(source, 5).tolist()
    with engine.load(source.write(tmp_path)) as model:
        done = model.generate(prompt)
        text = list(prompt)
        while len(text) < 30:
            text.append(int(expected(source, text)[-1].argmax()))
        assert done.ids == text[5:] and done.finish_reason == "length"
        assert [token.id for token in model.stream(prompt, max_new_tokens=4)] == text[5:9]
        assert model.generate([prompt, prompt[:2]], max_new_tokens=3)[0].ids == text[5:8]
        assert len(model.generate([1] * 29, max_new_tokens=9).ids) == 1


def test_longer_than_its_positions(tmp_path: Path) -> None:
    with engine.load(gpt2().write(tmp_path)) as model:
        message = "expected at most 29 tokens, the model's positions, found 30"
        for call in (lambda: model.log_probs([[1] * 30]), lambda: model.generate([1] * 30), lambda: model.forward([[1] * 30])):
            with pytest.raises(InputError, match=message):
                call()
        assert model.score([[1] * 30, [1, 2]]).token_nll.shape == (2, 29)
        with pytest.raises(InputError, match=r"ids\[1\]: " + message):
            model.score([[1, 2], [1] * 31])
        with pytest.raises(InputError, match="encode: expected an encoder, found task causal_lm"):
            model.encode([[1]])


def test_bare_names_buffers_and_untied_words(tmp_path: Path) -> None:
    source = gpt2(tie_word_embeddings=False)
    source.tensors["lm_head.weight"] = np.random.default_rng(1).standard_normal((37, 12)).astype(np.float32)
    source.tensors |= {f"transformer.h.{layer}.attn.bias": np.ones((1, 1, 29, 29), np.float32) for layer in range(2)}
    source.tensors |= {f"transformer.h.{layer}.attn.masked_bias": np.array(-1e4, np.float32) for layer in range(2)}
    ids = random_ids(source, 9)
    with engine.load(source.write(tmp_path / "a")) as model:
        found = model.log_probs([ids])[0]
    assert np.abs(found - expected(source, ids)).max() < 1e-5
    bare = Source(source.config, {name.removeprefix("transformer."): array for name, array in source.tensors.items()})
    with engine.load(bare.write(tmp_path / "b")) as model:
        assert np.array_equal(model.log_probs([ids])[0], found)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pruned_heads": {"0": [1]}}, r"layer 0: expected 3 heads, the 12 rows of transformer.h.0.attn.c_proj.weight / 4, found 2 heads"),
        ({"n_positions": 30}, "config n_positions: expected 29"),
        ({"n_inner": 47}, "config n_inner: expected 48"),
        ({"architectures": ["GPT2ForSequenceClassification"]}, "config architectures: expected GPT2LMHeadModel or GPT2Model"),
        ({"add_cross_attention": True}, "config add_cross_attention"),
    ],
)
def test_bad_configuration(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=message):
        engine.load(gpt2().write(tmp_path, **settings))


def test_the_command_converts_and_verifies(tmp_path: Path) -> None:
    source = gpt2().write(tmp_path / "source", PRUNED, pruned_heads={"0": [1], "1": [0, 1, 2]})
    assert headcount("convert", source, tmp_path / "out").status == 0
    assert headcount("verify", tmp_path / "out", "--against", source).status == 0
    assert headcount("inspect", tmp_path / "out").status == 0
