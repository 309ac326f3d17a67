"""Importance against finite differences of the oracle, planted heads, controls, files, interruption."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import engine
from engine.checkpoint import Checkpoint
from engine.checkpoint.surgery import prune
from engine.errors import BackendUnavailable, EngineError, InputError, Unsupported
from engine.formats.read import read_source
from engine.prune import rank as ranking
from engine.prune.batches import batches, by_length
from engine.prune.data.pieces import Example
from engine.prune.encoder import TaggingEncoder, require_encoder, with_labels
from engine.prune.evaluate import evaluate
from engine.prune.importance import Sums, add_gradient, add_michel, finish, magnitude, per_layer, random_scores, to_unit
from engine.prune.rank import RankOptions, rank
from engine.prune.select import order_of
from engine.prune.task import DataOptions, model_labels, read_data
from tests.oracle import hugging_face as oracle
from tests.support.hugging_face_sources import Source, encoder, gpt2
from tests.support.prune_models import PLANTED, planted_model, random_model, write_text

CPU = torch.device("cpu")


def random_examples(vocab: int, labels: int, lengths: list[int], seed: int = 5) -> list[Example]:
    """Some pieces begin no word."""
    rng = np.random.default_rng(seed)
    examples = []
    for index, length in enumerate(lengths):
        ids = rng.integers(2, vocab, length).tolist()
        first = sorted(rng.choice(length, size=(length + 1) // 2, replace=False).tolist())
        examples.append(Example(tuple(ids), tuple(first), tuple(rng.integers(0, labels, len(first)).tolist()), index))
    return examples


def oracle_losses(source: Source, example: Example, heads: np.ndarray) -> np.ndarray:
    """Cross-entropy of each word of one sequence, in float64."""
    length = len(example.ids)
    hidden = oracle.hidden_states(source.config, source.tensors, example.ids, np.ones(length), np.zeros(length, int), heads)
    logits = oracle.task_logits(source.config, source.tensors, hidden)[list(example.first)]
    return np.log(np.exp(logits).sum(1)) - logits[range(len(logits)), list(example.labels)]


def differences(source: Source, examples: list[Example], gone: np.ndarray) -> np.ndarray:
    """d mean loss of the words of `examples` / d mask, by central differences."""

    def loss(heads: np.ndarray) -> float:
        return float(np.concatenate([oracle_losses(source, example, heads) for example in examples]).mean())

    step, found = 1e-4, np.zeros_like(gone)
    for head in np.ndindex(*gone.shape):
        moved = [gone.copy(), gone.copy()]
        moved[0][head] += step
        moved[1][head] -= step
        found[head] = (loss(moved[0]) - loss(moved[1])) / (2 * step)
    return found


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "distilbert"])
def test_importance_is_the_derivative_by_the_mask(kind: str, tmp_path: Path) -> None:
    """Per batch for S2, per sequence for Michel, on a model with a head and a layer already gone; padding changes nothing."""
    source = encoder(kind, seed=7)
    pruned = {0: [1], 1: [0, 1, 2]}
    heads = source.mask(pruned).astype(np.float64)
    checkpoint, _ = read_source(source.write(tmp_path), heads=pruned)
    model = TaggingEncoder(checkpoint, CPU)
    examples = random_examples(source.config["vocab_size"], 5, [7, 3, 1, 9, 4])
    gradient, michel = Sums.of(checkpoint.spec), Sums.of(checkpoint.spec)
    for batch in batches(examples, 2, CPU):
        add_gradient(model, batch, gradient)
        add_michel(model, batch, michel)
    per_batch = sum(np.abs(differences(source, examples[start : start + 2], heads)) for start in (0, 2, 4))
    per_sequence = sum(np.abs(differences(source, [example], heads)) for example in examples)
    there = heads > 0
    assert np.array_equal(np.isfinite(gradient.values), there)
    assert np.allclose(gradient.values[there], per_batch[there], rtol=1e-3, atol=1e-5)
    assert np.allclose(michel.values[there], per_sequence[there], rtol=1e-3, atol=1e-5)
    assert (gradient.weight, michel.weight, gradient.batches) == (24, 5, 3)
    assert not np.allclose(per_batch[there], per_sequence[there], rtol=1e-2)


def test_normalisations_are_those_of_the_paper() -> None:
    raw = np.array([[3.0, 4.0, np.nan], [0.0, 5.0, 12.0]])
    expected = np.array([[0.6, 0.8, np.nan], [0, 5 / 13, 12 / 13]])
    assert np.allclose(per_layer(raw), expected, equal_nan=True)
    assert np.allclose(finish("gradient", Sums(raw, 7.0, 1)), expected / (12 / 13), equal_nan=True)
    assert np.allclose(finish("michel", Sums(raw, 7.0, 1)), expected, equal_nan=True)
    assert not to_unit(np.full((2, 2), 3.0)).any()


def test_the_reference_is_the_engine(tmp_path: Path) -> None:
    for kind in ("bert", "roberta", "distilbert"):
        source = encoder(kind, seed=3)
        directory = source.write(tmp_path / kind)
        examples = random_examples(source.config["vocab_size"], 5, [5, 9, 2])
        with engine.load(directory, backend="torch") as model:
            logits = model.logits([example.ids for example in examples])
        checkpoint, _ = read_source(directory)
        (batch,) = batches(examples, 3, CPU)
        found = TaggingEncoder(checkpoint, CPU).logits(batch).detach().numpy()
        expected = np.concatenate([logits[row, list(example.first)] for row, example in enumerate(examples)])
        assert np.abs(found - expected).max() < 1e-5


def planted_data(folder: Path, checkpoint: Checkpoint) -> Any:
    return read_data([write_text(folder / "dev.conllu")], model_labels(checkpoint), checkpoint, DataOptions())


@pytest.mark.parametrize("method", ["gradient", "michel"])
def test_planted_heads_are_found_and_are_enough(method: str, tmp_path: Path) -> None:
    """Only two known heads carry the label: they are ranked highest, and the model keeps its score without all others."""
    checkpoint = planted_model()
    data = planted_data(tmp_path, checkpoint)
    labels = model_labels(checkpoint)
    assert evaluate(TaggingEncoder(checkpoint, CPU), data, labels)["score"] == 1.0
    result = rank(checkpoint, tmp_path / "out", [str(tmp_path / "dev.conllu")], DataOptions(), RankOptions(method, batch=4))
    order = [tuple(head) for head in result["order"]]
    assert set(order[-2:]) == PLANTED
    scores = np.load(tmp_path / "out" / "scores.npy")
    assert scores.shape == (2, 3) and order_of(scores, checkpoint.spec) == order
    only = [[head for layer, head in sorted(PLANTED) if layer == index] for index in range(2)]
    assert evaluate(TaggingEncoder(prune(checkpoint, only), CPU), data, labels)["score"] == 1.0
    others = [[head for head in range(3) if (index, head) not in PLANTED] for index in range(2)]
    assert evaluate(TaggingEncoder(prune(checkpoint, others), CPU), data, labels)["score"] < 0.6
    reverse = rank(checkpoint, tmp_path / "high", [str(tmp_path / "dev.conllu")], DataOptions(), RankOptions(method, True, batch=4))
    assert {tuple(head) for head in reverse["order"][:2]} == PLANTED


def test_order_of_batches_changes_no_score(tmp_path: Path) -> None:
    checkpoint = random_model()
    data = planted_data(tmp_path, checkpoint)
    order = by_length(data.examples)
    lengths = [len(data.examples[index].ids) for index in order]
    assert sorted(order) == list(range(len(order))) and lengths == sorted(lengths, reverse=True)
    labels = model_labels(checkpoint)
    assert evaluate(TaggingEncoder(checkpoint, CPU), data, labels, batch=1) == evaluate(
        TaggingEncoder(checkpoint, CPU), data, labels, batch=64
    )


def test_controls(tmp_path: Path) -> None:
    checkpoint = random_model()
    spec = checkpoint.spec
    first, again, other = random_scores(spec, 42), random_scores(spec, 42), random_scores(spec, 43)
    assert np.array_equal(first, again) and not np.array_equal(first, other) and len(np.unique(first)) == 6
    w = {name: array.copy() for name, array in checkpoint.weights.items()}
    w["layers.1.attention.output"][:, 4:8] *= 100
    assert order_of(magnitude(spec, w), spec)[-1] == (1, 1)
    smaller = prune(checkpoint, [[0, 2], []])
    assert np.array_equal(np.isfinite(magnitude(smaller.spec, dict(smaller.weights))), [[True, False, True], [False] * 3])
    options = RankOptions("confidence", batch=5)
    query = checkpoint.weights["layers.0.attention.query"].copy()
    query[8:] *= 60
    sharp = replace(checkpoint, weights={**checkpoint.weights, "layers.0.attention.query": query})
    result = rank(sharp, tmp_path / "c", [write_text(tmp_path / "t.conllu")], DataOptions(), options)
    assert np.argmax(result["scores"][0]) == 2 and min(map(min, result["scores"])) > 0 and max(map(max, result["scores"])) <= 1
    for method in ("random", "magnitude"):
        low = rank(checkpoint, tmp_path / method, [], DataOptions(), RankOptions(method))
        high = rank(checkpoint, tmp_path / f"{method}-high", [], DataOptions(), RankOptions(method, True))
        assert low["order"] == high["order"][::-1]


def test_an_interrupted_ranking_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = random_model()
    text = write_text(tmp_path / "dev.conllu", 20)
    options = RankOptions(batch=3)
    whole = rank(checkpoint, tmp_path / "whole", [text], DataOptions(), options)
    monkeypatch.setattr(ranking, "SAVE_SECONDS", -1.0)
    counted: list[int] = []

    def stop(done: int, total: int) -> None:
        counted.append(done)
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rank(checkpoint, tmp_path / "out", [text], DataOptions(), options, progress=stop)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["partial.npz", "started.json"]
    with pytest.raises(InputError, match=r"(?s)batch: expected 3, as before, found 4.*another output directory"):
        rank(checkpoint, tmp_path / "out", [text], DataOptions(), replace(options, batch=4))
    counted.clear()
    again = rank(checkpoint, tmp_path / "out", [text], DataOptions(), options, progress=lambda done, total: counted.append(done))
    assert counted == [4, 5, 6, 7] and again == whole
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["ranking.json", "scores.npy"]
    assert json.loads((tmp_path / "out" / "ranking.json").read_text()) == whole
    with pytest.raises(InputError, match="model: expected"):
        rank(random_model(1), tmp_path / "out", [text], DataOptions(), options)
    assert rank(random_model(1), tmp_path / "out", [text], DataOptions(), options, force=True)["order"] != whole["order"]


def test_wrong_models_and_numbers(tmp_path: Path) -> None:
    checkpoint = random_model()
    text = write_text(tmp_path / "dev.conllu", 4)
    nan = replace(checkpoint, weights={**checkpoint.weights, "head.labels": checkpoint.weights["head.labels"] * np.float32("nan")})
    with pytest.raises(EngineError, match=r"importance of layers \[0, 1\] in batch 0: expected finite numbers"):
        rank(nan, tmp_path / "nan", [text], DataOptions(), RankOptions())
    with pytest.raises(InputError, match=r"dev2.conllu:1: expected a label of the model, found 'D"):
        rank(checkpoint, tmp_path / "x", [write_text(tmp_path / "dev2.conllu", 1, name="D")], DataOptions(), RankOptions())
    assert not (tmp_path / "x").exists()  # so that a corrected call finds nothing in its way
    hidden, _ = read_source(encoder("bert", "Model").write(tmp_path / "hidden"))
    with pytest.raises(InputError, match="expected a head of token labels, found task hidden"):
        rank(hidden, tmp_path / "x2", [text], DataOptions(), RankOptions())
    assert with_labels(hidden, ["A", "B"], 0).spec.check().head is not None
    language_model, _ = read_source(gpt2().write(tmp_path / "gpt2"))
    with pytest.raises(Unsupported, match="a bidirectional layer"):
        require_encoder(language_model.spec)
    key = checkpoint.weights["layers.0.attention.key"] * np.float32("nan")
    with pytest.raises(InputError, match="scores: layer 0, head 0: expected a number"):
        broken = replace(checkpoint, weights={**checkpoint.weights, "layers.0.attention.key": key})
        rank(broken, tmp_path / "x", [], DataOptions(), RankOptions("magnitude"))
    assert not (tmp_path / "x").exists()
    unnamed = replace(checkpoint, provenance={})
    with pytest.raises(InputError, match="names of its 4 labels"):
        rank(unnamed, tmp_path / "x3", [text], DataOptions(), RankOptions())
    for options, says in ((RankOptions("lrp"), "gradient, michel"), (RankOptions(batch=0), "at least one sequence")):
        with pytest.raises(InputError, match=says):
            rank(checkpoint, tmp_path / "x4", [text], DataOptions(), options)
    with pytest.raises(BackendUnavailable, match="device: expected auto, cpu, cuda"):
        rank(checkpoint, tmp_path / "x4", [text], DataOptions(), RankOptions(device="abacus"))
    assert not (tmp_path / "x4").exists()
    with pytest.raises(InputError, match="labelled sentences for the method gradient"):
        rank(checkpoint, tmp_path / "x5", [], DataOptions(), RankOptions())
    short = replace(checkpoint, spec=replace(checkpoint.spec, embedding=replace(checkpoint.spec.embedding, positions=5)))
    with pytest.raises(InputError, match=r"dev.conllu:\d+: expected a sentence of at most 5 tokens"):
        read_data([text], model_labels(short), short, DataOptions())
