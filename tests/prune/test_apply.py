"""Orders, budgets, combined rankings, masks of other programs, and the verbs rank and apply as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import engine
from engine import checkpoint as checkpoints
from engine.checkpoint import Checkpoint
from engine.checkpoint.surgery import mask, prune
from engine.errors import EngineError, InputError
from engine.prune.apply import apply_mask, apply_ranking
from engine.prune.masks import read_mask, read_scores
from engine.prune.select import Budget, combine, order_of, without
from engine.spec.cost import model_cost
from tests.oracle import hugging_face as oracle
from tests.support.command import headcount
from tests.support.hugging_face_sources import encoder
from tests.support.prune_models import CLASSES, PLANTED, WORDS, planted_model, random_model, tokenizer, write_text

SCORES = np.array([[0.5, 0.0, 0.3], [0.3, 1.0, 0.2]])
ORDER = [(0, 1), (1, 2), (0, 2), (1, 0), (0, 0), (1, 1)]


def test_order_and_combination() -> None:
    spec = random_model().spec
    assert order_of(SCORES, spec) == ORDER
    assert order_of(-SCORES, spec)[0] == (1, 1)
    other = np.array([[9.0, 0.0, 8.0], [1.0, 2.0, 3.0]])
    assert order_of(combine([SCORES, other], "sd"), spec) == [(0, 1), (1, 0), (1, 1), (1, 2), (0, 2), (0, 0)]
    # ranks 4 0 2 / 3 5 1 and 5 0 4 / 1 2 3
    assert np.array_equal(combine([SCORES, other], "md"), [[9, 0, 6], [4, 7, 4]])
    gone = SCORES.copy()
    gone[1, 1] = np.nan
    assert np.isnan(combine([gone, gone], "md")[1, 1])
    with pytest.raises(InputError, match="scores of the same heads"):
        combine([SCORES, gone], "sd")
    with pytest.raises(InputError, match="layer 1, head 1: expected a number, found nan"):
        order_of(gone, spec)
    with pytest.raises(InputError, match="2 layers × 3 heads, found \\[3, 2\\]"):
        order_of(SCORES.T, spec)
    assert order_of(gone, prune(random_model(), [[0, 1, 2], [0, 2]]).spec)[-1] == (0, 0)


def test_budgets() -> None:
    spec = random_model().spec
    assert Budget(heads=4).kept(spec, ORDER) == ((0, 2), (0, 1))
    assert Budget(fraction=0.5).kept(spec, ORDER) == ((0,), (0, 1))
    assert Budget(fraction=0.34).kept(spec, ORDER) == Budget(heads=4).kept(spec, ORDER)
    assert Budget(heads=6).kept(spec, ORDER) == Budget(flops=1.0).kept(spec, ORDER) == ((0, 1, 2), (0, 1, 2))
    for count in range(6):
        kept = without(spec, ORDER[:count])
        cost = model_cost(spec.with_kept(kept), rows=20).total
        assert Budget(flops=cost.prefill.needed, rows=20).kept(spec, ORDER) == kept
        assert Budget(parameters=cost.parameters).kept(spec, ORDER) == kept
        if count:
            assert Budget(parameters=cost.parameters + 1).kept(spec, ORDER) == kept
            assert Budget(parameters=cost.parameters - 1).kept(spec, ORDER) != kept if count < 5 else True
    with pytest.raises(InputError, match="at least one head in the model, found none"):
        Budget(heads=0).kept(spec, ORDER)
    for budget, says in (
        (Budget(), "one of heads, fraction"),
        (Budget(heads=1, flops=0.5), "found heads, flops"),
        (Budget(fraction=1.5), "a share from 0 to 1"),
        (Budget(heads=7), "at most the model's 6 heads"),
        (Budget(flops=0.01), "what the model has with one head left"),
        (Budget(parameters=float("nan")), "a number of at least 0"),
    ):
        with pytest.raises(InputError, match=says):
            budget.kept(spec, ORDER)


def kept_of(checkpoint: Checkpoint) -> list[list[int]]:
    return [list(layer.attention.kept) for layer in checkpoint.spec.layers]


def test_masks_of_other_programs(tmp_path: Path) -> None:
    """Michel's descriptors, Voita's lists and gate logits, DSP's tensor, bertology's array, a Shapley tracker: the same heads."""
    spec = random_model().spec
    expected = ((0, 2), (1,))
    alive = np.array([[1, 0, 1], [0, 1, 0]])
    (tmp_path / "michel.txt").write_text("1:2 2:1,3\n")
    (tmp_path / "prefixed.txt").write_text("E:1:2\nE:2:1 E:2:3")
    (tmp_path / "voita.json").write_text(json.dumps({"alive_heads": {"enc-self": alive.tolist(), "dec-self": []}}))
    np.save(tmp_path / "head_mask.npy", alive.astype(np.float32))
    torch.save(torch.tensor(alive, dtype=torch.float32), tmp_path / "mask3.pt")
    np.save(tmp_path / "log_a.npy", np.where(alive, 9.0, -9.0))
    earlier = 'Contribution Arrays{"0": [-1.0]}'
    contributions = json.dumps({"0": [0.2, 0.1], "1": [-0.2, 0.1], "2": [], "3": [-1], "5": [-0.5]})
    (tmp_path / "en_tracker.txt").write_text(f"0.0-100\n{earlier}tensor(3.)-200\nContribution Arrays{contributions}")
    for name in ("michel.txt", "prefixed.txt", "voita.json", "head_mask.npy", "mask3.pt", "en_tracker.txt"):
        choice = read_mask(tmp_path / name, spec)
        assert choice.kept == expected and choice.scales is None, name
    logits = read_mask(tmp_path / "log_a.npy", spec, "voita-logits")
    assert logits.kept == expected
    np.save(tmp_path / "half.npy", np.where(alive, 0.0, -9.0))  # σ = ½: the gate is half open
    assert read_mask(tmp_path / "half.npy", spec, "voita-logits").scales == ((0.5, 0.5), (0.5,))
    scores = read_scores(tmp_path / "en_tracker.txt", spec)
    assert np.allclose(scores, [[0.15, -0.05, 0], [-1, 0, -0.5]])


@pytest.mark.parametrize(
    ("name", "content", "format", "says"),
    [
        ("a.txt", "1:2 x:3", "auto", "layer:head,head .* found 'x:3'"),
        ("a.txt", "0:1", "auto", "counted from 1"),
        ("a.txt", "A:1:2", "auto", "of an encoder"),
        ("a.txt", "3:1", "auto", "a layer from 0 to 1"),
        ("a.txt", "1:4", "auto", "heads from 0 to 2"),
        ("v.json", '{"enc-self": [[1, 0], [1, 0]]}', "auto", r"rows of \[3, 3\] heads, found \[2, 2\]"),
        ("v.json", '{"enc-self": [[1, 0, 2], [1, 0, 0]]}', "auto", "a row of 1 and 0"),
        ("v.json", '{"dec-self": []}', "voita", "a row of 1 and 0"),
        ("s.txt", "Contribution Arrays[1]", "auto", "an object of lists"),
        ("s.txt", 'Contribution Arrays{"6": [1]}', "auto", "a head from 0 to 5"),
        ("s.txt", 'Contribution Arrays{"1": ["a"]}', "auto", "numbers for a head"),
        ("s.txt", "1:2", "shapley", "no such text"),
        ("n.npy", "nothing", "voita-logits", "a whole .npy array"),
        ("n.npy", "nothing", "heads", "a whole .npy array"),
        ("n.npy", "nothing", "dsp", "auto, heads, michel"),
    ],
)
def test_masks_that_are_none(name: str, content: str, format: str, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=says):
        read_mask(tmp_path / name, random_model().spec, format)


def test_a_mask_keeps_its_scales_and_what_is_left() -> None:
    checkpoint = prune(random_model(), [[0, 1], [1, 2]])
    spec = checkpoint.spec
    half = apply_mask(checkpoint, read_choice([[0.5, 0, 1], [0, 1, 0]]), {})
    assert kept_of(half) == [[0], [1]] and half.weights["layers.0.attention.head_scale"].tolist() == [0.5]
    assert half.provenance["pruning"] == {}
    with pytest.raises(InputError, match="at least one head in the model"):
        apply_mask(checkpoint, read_choice([[0, 0, 1], [1, 0, 0]]), {})
    assert kept_of(apply_ranking(checkpoint, SCORES, Budget(heads=2), {})) == [[0], [1]]
    assert spec is checkpoint.spec


def read_choice(rows: list[list[float]]) -> engine.formats.heads.HeadChoice:  # type: ignore[name-defined]
    from engine.formats.heads import read_heads

    return read_heads(np.array(rows), 2, 3)


def test_rank_and_apply_as_a_user(tmp_path: Path) -> None:
    model, text = tmp_path / "model", write_text(tmp_path / "dev.conllu")
    checkpoints.save(planted_model(), model)
    done = headcount("prune", "rank", model, tmp_path / "ranking", "--data", text, "--batch", 8)
    assert done.status == 0 and "first to prune (layer.head): " in done.out, done.err
    assert headcount("prune", "rank", model, tmp_path / "ranking", "--data", text, "--batch", 8).out == done.out
    done = headcount("prune", "apply", model, tmp_path / "small", "--ranking", tmp_path / "ranking", "--heads", 2, "--json")
    assert done.status == 0 and json.loads(done.out)["kept"] == [[1], [2]]
    ids = [[2, 5, 9, 17, 3], [2, 12, 3]]
    kept = [[head for layer, head in sorted(PLANTED) if layer == index] for index in range(2)]
    checkpoints.save(mask(planted_model(), kept), tmp_path / "masked")
    with engine.load(tmp_path / "small", dtype="float32") as small, engine.load(tmp_path / "masked", dtype="float32") as masked:
        assert np.abs(small.logits(ids) - masked.logits(ids)).max() < 1e-5
        assert small.spec.layers[1].attention.kept == (2,)
    for name in ("scores.npy", "ranking.json"):
        done = headcount("prune", "apply", model, tmp_path / name, "--ranking", tmp_path / "ranking" / name, "--fraction", 0.5)
        assert done.status == 0 and "3 of 6 heads" in done.out
    twice = ("--ranking", tmp_path / "ranking", "--ranking", tmp_path / "ranking" / "scores.npy")
    assert headcount("prune", "apply", model, tmp_path / "md", *twice, "--combine", "md", "--flops", 0.9).status == 0
    (tmp_path / "m.txt").write_text("1:1")
    assert "5 of 6 heads" in headcount("prune", "apply", model, tmp_path / "m", "--mask", tmp_path / "m.txt").out


def test_a_directory_of_twelve_layers_of_twelve_heads(tmp_path: Path) -> None:
    """The layout of XLM-R, with its tokenizer beside it: ranked as it lies there, cut, run."""
    source = encoder("xlm-roberta", hidden_size=48, num_attention_heads=12, num_hidden_layers=12, vocab_size=4 + WORDS * CLASSES)
    hf = source.write(tmp_path / "hf", id2label={str(index): f"C{index}" for index in range(5)})
    (hf / "tokenizer.json").write_text(tokenizer())
    text = write_text(tmp_path / "dev.conllu", 6)
    done = headcount("prune", "rank", hf, tmp_path / "ranking", "--data", text, "--limit", 4, "--quiet")
    assert done.status == 0 and done.out == "", done.err
    done = headcount("prune", "apply", hf, tmp_path / "small", "--ranking", tmp_path / "ranking", "--heads", 61)
    assert "61 of 144 heads" in done.out, done.err
    small = checkpoints.read(tmp_path / "small")
    mask_of = np.array([[float(head in layer.attention.kept) for head in range(12)] for layer in small.spec.layers])
    ids = [[2, 5, 9, 17, 3], [2, 12, 3]]
    with engine.load(tmp_path / "small", dtype="float32") as model:
        found = model.logits(ids)
    for row, sequence in enumerate(ids):
        n = len(sequence)
        hidden = oracle.hidden_states(source.config, source.tensors, sequence, np.ones(n), np.zeros(n, int), mask_of)
        assert np.abs(found[row, :n] - oracle.task_logits(source.config, source.tensors, hidden)).max() < 1e-4


def test_wrong_calls(tmp_path: Path) -> None:
    model = tmp_path / "model"
    checkpoints.save(random_model(), model)
    (tmp_path / "m.txt").write_text("1:1,2,3 2:1,2,3")
    done = headcount("prune", "apply", model, tmp_path / "x", "--mask", tmp_path / "m.txt")
    assert done.status == 1 and done.err.startswith("InputError: heads: expected at least one head in the model")
    assert headcount("prune", "apply", model, tmp_path / "x").status == 2
    assert headcount("prune", "apply", model, tmp_path / "x", "--mask", tmp_path / "m.txt", "--heads", 3).status == 2
    np.save(tmp_path / "s.npy", SCORES)
    assert "one of heads, fraction" in headcount("prune", "apply", model, tmp_path / "x", "--ranking", tmp_path / "s.npy").err
    done = headcount("prune", "apply", model, model, "--ranking", tmp_path / "s.npy", "--heads", 3)
    assert done.status == 1 and "--force" in done.err
    assert headcount("prune", "rank", model, tmp_path / "y").err.startswith("InputError: data: expected labelled sentences")
    assert not (tmp_path / "x").exists() and not (tmp_path / "y").exists()
    with pytest.raises(EngineError, match="ranking"):
        read_scores(tmp_path / "ranking", random_model().spec)
