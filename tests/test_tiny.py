"""The whole path in a second, on the installed package too: convert, load, score, generate, save, load again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import engine

pytest.importorskip("torch")
FIXTURE = Path(__file__).parent / "fixtures" / "aiha-char"
KEPT = [[], [0]]  # of [1] and [0], which its gates leave


def test_the_whole_path(tmp_path: Path) -> None:
    expected = np.load(FIXTURE / "expected.npz")
    report = engine.convert(FIXTURE, tmp_path / "dense")
    assert report.format == "aiha-lab" and report.source_heads == (2, 2)

    with engine.load(tmp_path / "dense", check=True) as dense:
        found = dense.log_probs(expected["ids"])
        assert np.abs(found - expected["log_probs"]).max() < 2e-4
        row = expected["ids"][:1]
        nll = -np.take_along_axis(found[:1, :-1], row[:, 1:, None], 2)[..., 0]
        np.testing.assert_allclose(dense.score(row).token_nll, nll, atol=1e-5)
        done = dense.generate(row[0], max_new_tokens=5)
        assert done.ids[0] == int(found[0, -1].argmax()) and len(done.ids) == 5 and done.text is None
        assert [token.id for token in dense.stream(row[0], max_new_tokens=5)] == done.ids

    with engine.load(FIXTURE, heads=KEPT) as pruned, engine.load(FIXTURE, heads=KEPT, masked=True) as masked:
        answers = pruned.log_probs(row)
        np.testing.assert_allclose(answers, masked.log_probs(row), atol=1e-5)
        assert np.abs(answers - found[:1]).max() > 1e-3
        assert pruned.cost().weight_bytes < dense.cost().weight_bytes
        pruned.save(tmp_path / "pruned")

    with engine.load(tmp_path / "pruned", check=True) as again:
        assert [list(layer.attention.kept) for layer in again.spec.layers] == KEPT
        np.testing.assert_array_equal(again.log_probs(row), answers)
