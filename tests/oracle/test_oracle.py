"""The oracle against itself: what must not change an answer, and what must."""

from __future__ import annotations

import ast
import copy
from pathlib import Path

import numpy as np
import pytest

from tests.oracle.model import run
from tests.support.random_specs import random_checkpoint, random_length

ROUNDING = 1e-9  # of float64 over sums in another order; a wrong answer is off by 1e-3 and more


def _ids(seed: int, vocab: int, length: int) -> np.ndarray:
    return np.random.default_rng([seed, 4]).integers(0, vocab, length)


def test_oracle_imports_numpy_and_the_standard_library_only() -> None:
    allowed = {"__future__", "collections", "dataclasses", "math", "typing", "numpy", "tests"}
    for file in Path(__file__).parent.glob("*.py"):
        if file.name.startswith("test_"):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] in allowed, f"{file.name} imports {name}"
                assert not name.startswith("tests") or name.startswith("tests.oracle"), f"{file.name} imports {name}"


@pytest.mark.parametrize("chunk", [1, 2, 7])
def test_sliding_windows_do_not_depend_on_how_the_stream_is_cut(chunk: int) -> None:
    for seed in range(40):
        checkpoint = random_checkpoint(seed)
        ids = _ids(seed, checkpoint.spec.vocab, min(20, random_length(checkpoint)))
        spec = checkpoint.spec.to_dict()
        if spec["layers"][0]["attention"]["segment"] is None:
            whole, cut = run(spec, checkpoint.weights, ids), run(spec, checkpoint.weights, ids, chunk=chunk)
            assert np.abs(whole.log_probs - cut.log_probs).max() < ROUNDING


def test_probabilities_add_up_and_no_token_sees_a_later_one() -> None:
    for seed in range(24):
        checkpoint = random_checkpoint(seed)
        ids = _ids(seed, checkpoint.spec.vocab, 9)
        answer = run(checkpoint.spec.to_dict(), checkpoint.weights, ids)
        assert np.abs(np.exp(answer.log_probs).sum(1) - 1).max() < ROUNDING
        changed = np.append(ids[:6], (ids[6:] + 1) % checkpoint.spec.vocab)
        other = run(checkpoint.spec.to_dict(), checkpoint.weights, changed)
        assert np.array_equal(answer.streams[:, :6], other.streams[:, :6])


def test_a_head_with_zero_output_columns_is_no_head() -> None:
    tried = 0
    for seed in range(60):
        checkpoint = random_checkpoint(seed)
        spec = copy.deepcopy(checkpoint.spec.to_dict())
        a, dim = spec["layers"][0]["attention"], spec["layers"][0]["attention"]["head_dim"]
        heads = len(a["kept"])
        if not heads:
            continue
        tried += 1
        gone = seed % heads
        kept = [h for h in range(heads) if h != gone]
        rows = [h * dim + i for h in kept for i in range(dim)]
        masked, without = dict(checkpoint.weights), dict(checkpoint.weights)
        prefix = "layers.0.attention."
        masked[prefix + "output"] = np.where(np.arange(heads * dim) // dim == gone, 0, masked[prefix + "output"])
        for name in [name for name in without if name.startswith(prefix) and name != prefix + "output_bias"]:
            array = without[name]
            part = name[len(prefix) :]
            if part == "output":
                without[name] = array[:, rows]
            else:
                without[name] = array[kept] if array.shape[0] == heads else array[rows]
        ids = _ids(seed, checkpoint.spec.vocab, 7)
        full = run(spec, masked, ids).streams
        a["kept"], a["kv_of"] = [a["kept"][h] for h in kept], list(range(heads - 1))
        a["spans"] = None if a["spans"] is None else [a["spans"][h] for h in kept]
        assert np.abs(full - run(spec, without, ids).streams).max() < ROUNDING
    assert tried > 30


@pytest.mark.parametrize(
    ("field", "other"),
    [("start", {"attended_zeros": "empty", "empty": "attended_zeros"}), ("sees_self", {True: False, False: True})],
)
def test_start_and_self_change_the_answer(field: str, other: dict[object, object]) -> None:
    tried = 0
    for seed in range(60):
        checkpoint = random_checkpoint(seed)
        spec = copy.deepcopy(checkpoint.spec.to_dict())
        attentions = [layer["attention"] for layer in spec["layers"]]
        if any(not a["kept"] or a["window"] < 5 or a["segment"] or a["spans"] for a in attentions):
            continue
        if field == "sees_self" and attentions[0]["start"] == "empty":
            continue
        ids = _ids(seed, checkpoint.spec.vocab, 4)
        before = run(spec, checkpoint.weights, ids).log_probs
        for a in attentions:
            a[field] = other[a[field]]
        if attentions[0]["start"] == "empty" and not attentions[0]["sees_self"]:
            continue
        assert np.abs(before - run(spec, checkpoint.weights, ids).log_probs).max() > 1e-3
        tried += 1
    assert tried > 3


def test_what_the_oracle_does_not_know_it_refuses() -> None:
    checkpoint = random_checkpoint(1)
    for change in (("norm", "rms"), ("attention.causal", False), ("attention.position", {"kind": "Rotary", "base": 1e4, "width": None})):
        spec = copy.deepcopy(checkpoint.spec.to_dict())
        for layer in spec["layers"]:
            target = layer["attention"] if change[0].startswith("attention.") else layer
            target[change[0].split(".")[-1]] = change[1]
        assert any(layer["attention"]["kept"] for layer in spec["layers"])
        with pytest.raises(NotImplementedError, match="the oracle knows"):
            run(spec, checkpoint.weights, [0, 1])
