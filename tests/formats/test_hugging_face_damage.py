"""Hugging Face directories with settings and tensors made wrong at random: one clear error or a model that runs, nothing else."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import engine
from engine.errors import EngineError
from tests.support.hugging_face_sources import Source, encoder, gpt2

pytest.importorskip("torch")
WRONG: list[Any] = [None, 0, 1, -1, 2**31, 2**70, 1.5, -0.5, 1e300, "", "x", [], [1], ["x"], {}, True, False]
WRONG += [{"0": [0]}, {"0": 5}, {"a": 1}, {"0": [[1]]}, {"0": [None]}, [[0]] * 3, [3, 3, 3], [None], "hidden"]
WRONG += [{"00": {"num_attention_heads": 2}}, {"00": {"num_attention_heads": "2"}}]
HEADS = ["pruned_heads", "per_layer_config", "num_attention_heads_per_layer", "kept_heads", "head_dim", "layer_head_num"]


def any_source(rng: np.random.Generator) -> Source:
    kind = ("bert", "xlm-roberta", "distilbert", "electra", "gpt2")[int(rng.integers(5))]
    task = ("Model", "ForTokenClassification", "ForSequenceClassification", "ForMaskedLM")[int(rng.integers(4))]
    return gpt2() if kind == "gpt2" else encoder(kind, task)


def damaged(array: np.ndarray, kind: int) -> np.ndarray:
    choices = (array[:0], array.reshape(-1), array[:-1], array.astype(np.int32), array[None], np.array(1, np.float32), array * np.nan)
    return np.ascontiguousarray(choices[kind])


@pytest.mark.parametrize("seed", range(3))
def test_damage_ends_in_an_error_or_a_model(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    outcomes: Counter[str] = Counter()
    for _ in range(80):
        source = any_source(rng)
        config, tensors = dict(source.config), dict(source.tensors)
        for _ in range(int(rng.integers(0, 3))):
            names = [*config, *HEADS, "tie_word_embeddings", "embedding_size"]
            config[names[int(rng.integers(len(names)))]] = WRONG[int(rng.integers(len(WRONG)))]
        for name in rng.choice(list(tensors), int(rng.integers(0, 3)), replace=False).tolist():
            if rng.random() < 0.2:
                del tensors[name]
            else:
                tensors[name] = damaged(tensors[name], int(rng.integers(7)))
        (tmp_path / "config.json").write_text(json.dumps(config))
        save_file(tensors, tmp_path / "model.safetensors")
        try:
            with engine.load(tmp_path) as model:
                found = (model.log_probs if model.spec.task == "causal_lm" else model.encode)([[1, 2, 3]])
                assert np.isfinite(found).all()
            outcomes["ran"] += 1
        except EngineError as error:
            assert error.problems and len(str(error)) < 20_000
            outcomes["refused"] += 1
    assert outcomes["refused"] > 20 and outcomes["ran"] > 2, outcomes
