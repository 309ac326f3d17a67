"""Encoders and GPT-2 on the `triton` backend: the published outputs, and the oracle over small models of every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton", reason="Triton is not installed: pip install 'headcount[gpu]'", exc_type=ImportError)

import torch

import engine
from engine.backends.gpu.rows import Rows
from engine.backends.runner import Batch
from engine_kernels.testing import assert_close
from tests.oracle import hugging_face as oracle
from tests.support.hugging_face_sources import Source, encoder, gpt2

FIXTURE = Path(__file__).parents[2] / "fixtures" / "hf-bert-tokcls"
EXPECTED_WITHIN = 2e-4  # of the published code's own float32
CLOSE = 1e-5
PRUNED = {0: [1], 1: [0, 1, 2], 2: [0, 2]}
LENGTHS = (9, 1, 5)


@pytest.mark.parametrize(
    ("directory", "heads", "wanted"), [("dense", None, "dense"), ("pruned", None, "pruned"), ("dense", "head_mask", "pruned")]
)
def test_reproduces_the_published_code(directory: str, heads: str | None, wanted: str) -> None:
    expected = np.load(FIXTURE / "expected.npz")
    seen = expected["attention_mask"]
    mask = None if heads is None else expected[heads]
    with engine.load(FIXTURE / directory, backend="triton", dtype="float32", heads=mask) as model:
        found = model.logits(expected["input_ids"], seen)
    assert np.abs(found - expected[f"logits_{wanted}"])[seen == 1].max() <= EXPECTED_WITHIN


def sequences(source: Source) -> list[np.ndarray]:
    """Of uneven lengths, one of a single token, one with a pad token in its middle."""
    rng = np.random.default_rng(5)
    drawn = [rng.integers(2, source.config["vocab_size"], length) for length in LENGTHS]
    drawn[0][4] = source.config["pad_token_id"]
    return drawn


def exact(source: Source, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The oracle's hidden states, and what the task head makes of them."""
    heads = source.mask(PRUNED)
    hidden = oracle.hidden_states(source.config, source.tensors, ids, np.ones(len(ids)), np.zeros(len(ids), int), heads)
    return hidden, oracle.task_logits(source.config, source.tensors, hidden)


@pytest.mark.parametrize(
    ("kind", "task", "settings"),
    [
        ("bert", "ForSequenceClassification", {"hidden_act": "quick_gelu"}),
        ("xlm-roberta", "ForMaskedLM", {}),
        ("distilbert", "ForQuestionAnswering", {"activation": "relu"}),
    ],
)
def test_families_and_heads_keep_to_the_oracle(kind: str, task: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """Pooled, from the vocabulary, of every token; a layer without heads starts no attention."""
    source = encoder(kind, task, **settings)
    source.write(tmp_path, PRUNED, pruned_heads={str(layer): heads for layer, heads in PRUNED.items()})
    with engine.load(tmp_path, backend="triton", dtype="float32") as model:
        found = model.logits(sequences(source))
        for row, ids in zip(found, sequences(source), strict=True):
            wanted = exact(source, ids)[1]
            assert np.abs((row if row.ndim == 1 else row[: len(ids)]) - wanted).max() < CLOSE
        launches = model.explain().runner["launches"]
        assert launches["attend_bidirectional"] == launches["project_heads"] == 2


def test_half_precision_keeps_to_the_rule(tmp_path: Path) -> None:
    """Weights that float16 holds exactly, so that only the arithmetic differs; p is the torch backend's in float16."""
    source = encoder("bert", "ForTokenClassification", hidden_act="gelu_new")
    source.tensors = {name: array.astype(np.float16).astype(np.float32) for name, array in source.tensors.items()}
    source.write(tmp_path, PRUNED, pruned_heads={str(layer): heads for layer, heads in PRUNED.items()})
    hidden = {}
    for backend in ("triton", "torch"):
        with engine.load(tmp_path, backend=backend, dtype="float16") as model:
            hidden[backend] = model.encode(sequences(source))
    for row, ids in enumerate(sequences(source)):
        found, plain = (hidden[backend][row, : len(ids)] for backend in ("triton", "torch"))
        assert_close(found, plain, exact(source, ids)[0], "float16", f"{len(ids)} tokens")


def test_gpt2_scores_and_continues_a_text(tmp_path: Path) -> None:
    """Absolute positions, no window, gelu by tanh, a layer without heads; by segments, then a token at a time."""
    source, pruned = gpt2(), {0: [1], 1: [0, 1, 2]}
    ids = np.random.default_rng(3).integers(0, 37, 9)

    def log_probs(text: Any) -> np.ndarray:
        logits = oracle.gpt2_logits(source.config, source.tensors, text, source.mask(pruned))
        shifted = logits - logits.max(1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))

    source.write(tmp_path, pruned, pruned_heads={str(layer): heads for layer, heads in pruned.items()})
    with engine.load(tmp_path, backend="triton", dtype="float32") as model:
        nll = -log_probs(ids)[np.arange(8), ids[1:]]
        assert np.abs(model.score([ids], segment=5).token_nll[0] - nll).max() < CLOSE
        text = ids[:5].tolist()
        done = model.generate(text, max_new_tokens=3)
        for _ in range(3):
            text.append(int(log_probs(text)[-1].argmax()))
        assert done.ids == text[5:]


@pytest.mark.parametrize("causal", [False, True])
def test_rows_of_a_batch_stand_where_kernels_are_compiled_for(causal: bool) -> None:
    """At multiples of 16 bytes whatever the lengths; streams of one row apart from the others, whole sequences all together."""
    lengths = np.array([3, 1, 5])
    batch = Batch(np.zeros(9, np.int64), np.array([4, 0, 2]), np.zeros(3, np.int64), lengths, "hidden")
    rows = Rows.of(batch, torch.device("cpu"), causal=causal)
    assert rows.slots.tolist() == [4, 4, 4, 0, 2, 2, 2, 2, 2] and rows.positions.tolist() == [0, 1, 2, 0, 0, 1, 2, 3, 4]
    assert rows.several is not None and (rows.single is not None) == causal
    assert rows.several.first_rows.tolist() == ([0, 4] if causal else [0, 3, 4])
    assert rows.several.lengths.tolist() == rows.lengths.tolist() == ([3, 5] if causal else [3, 1, 5])
    parts = [rows.slots, rows.positions, rows.order, rows.several.first_rows, rows.several.lengths, rows.several.slots]
    parts += [] if rows.single is None else [rows.single.first_rows, rows.single.slots, rows.single.positions]
    assert [part.data_ptr() % 16 for part in parts] == [0] * len(parts)
