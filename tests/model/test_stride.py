"""Texts longer than GPT-2 has positions, scored in windows: against the oracle in float64, and on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engine
from engine.errors import InputError
from tests.model.test_gpt2 import expected, random_ids
from tests.support.command import SOURCE, headcount
from tests.support.hugging_face_sources import Source, gpt2

pytest.importorskip("torch")
POSITIONS = 29
LETTERS = [chr(code) for code in range(97, 123)] + ["Ġ", "Ċ", ".", ",", "A", "B", "C", "D", "E", "F", "<|endoftext|>"]
TEXT = "the quick brown fox jumps over the lazy dog. and then it sleeps.\n"


def windowed(source: Source, ids: np.ndarray, stride: int) -> np.ndarray:
    """-log p [T - 1] of each token in the first window that predicts it, one token after the other; NaN where none does."""
    nll = np.full(len(ids) - 1, np.nan)
    for start in range(0, len(ids), stride):
        tokens = ids[start : start + POSITIONS]
        log_probs = expected(source, tokens)
        for at in range(1, len(tokens)):
            if np.isnan(nll[start + at - 1]):
                nll[start + at - 1] = -log_probs[at - 1, tokens[at]]
        if start + POSITIONS >= len(ids):
            return nll
    raise AssertionError("no window reached the end")


@pytest.mark.parametrize("length", [2, 28, 29, 30, 31, 58, 59, 100])
@pytest.mark.parametrize("stride", [1, 7, 14, 28, 29])
def test_each_token_is_predicted_in_the_first_window_that_holds_it(stride: int, length: int, tmp_path: Path) -> None:
    source = gpt2()
    ids = random_ids(source, length)
    nll = windowed(source, ids, stride)
    assert np.isnan(nll).sum() == (max(length - 1, 0) // 29 if stride == 29 else 0)
    with engine.load(source.write(tmp_path)) as model:
        for segment in (None, 5):
            score = model.score([ids], stride=stride, segment=segment)
            np.testing.assert_allclose(score.token_nll[0], nll, rtol=0, atol=1e-5)
        assert (score.stride, score.windows) == (stride, 1 + max(0, -(-(length - 29) // stride)))
        assert score.tokens == (~np.isnan(nll)).sum() and score.mean == pytest.approx(np.nanmean(nll), abs=1e-5)
        assert score.ppl == pytest.approx(np.exp(np.nanmean(nll)), rel=1e-4)


def test_sequences_of_several_lengths(tmp_path: Path) -> None:
    source = gpt2()
    rows = [random_ids(source, length, seed=length) for length in (64, 1, 29, 30)]
    with engine.load(source.write(tmp_path)) as model:
        score = model.score(rows, stride=10)
        plain = model.score(rows[2:])
    for row, found in zip(rows, score.token_nll, strict=True):
        np.testing.assert_allclose(found[: len(row) - 1], windowed(source, row, 10) if len(row) > 1 else [], rtol=0, atol=1e-5)
        assert np.isnan(found[len(row) - 1 :]).all()
    assert score.tokens == 63 + 28 + 29 and score.windows == 5 + 1 + 1 + 2
    assert (plain.windows, plain.stride, plain.tokens) == (None, None, 28 + 29)


@pytest.mark.parametrize("stride", [0, -1, 30, True, 1.5, "7"])
def test_a_stride_that_leaves_tokens_out_is_refused(stride: Any, tmp_path: Path) -> None:
    with engine.load(gpt2().write(tmp_path)) as model, pytest.raises(InputError, match="stride: expected an integer from 1 to 29"):
        model.score([[1, 2]], stride=stride)


def test_where_windows_have_no_meaning(tmp_path: Path) -> None:
    with engine.load(SOURCE.write(tmp_path / "memory")) as model, pytest.raises(InputError, match="stride: expected a model with two pos"):
        model.score([[1, 2]], stride=4)
    with engine.load(gpt2().write(tmp_path / "gpt2")) as model, pytest.raises(InputError, match=r"found 30\s+.*stride=N"):
        model.score([[1] * 31])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2")
    gpt2().write(folder)
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(LETTERS)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


@pytest.mark.parametrize(
    ("flags", "stride", "rows"), [([], 14, 1), (["--stride", 7], 7, 1), (["--stride", 29], 29, 1), (["--batch", 2, "--segment", 3], 14, 2)]
)
def test_the_command_scores_a_long_text(flags: list[object], stride: int, rows: int, folder: Path) -> None:
    ids = np.array([LETTERS.index({" ": "Ġ", "\n": "Ċ"}.get(letter, letter)) for letter in TEXT])
    parts = ids[: len(ids) // rows * rows].reshape(rows, -1)
    nll = np.concatenate([windowed(gpt2(), part, stride) for part in parts])
    done = headcount("score", folder, "-", "--dtype", "float32", "--json", *flags, given=TEXT)
    assert (done.status, done.err) == (0, "")
    found = json.loads(done.out)
    assert (found["stride"], found["tokens"]) == (stride, (~np.isnan(nll)).sum())
    assert found["windows"] == rows * (1 + -(-(parts.shape[1] - 29) // stride))
    assert found["nll"] == pytest.approx(np.nanmean(nll), abs=1e-5)
    said = headcount("score", folder, "-", "--dtype", "float32", *flags, given=TEXT).out
    assert f"({found['windows']} windows, stride {stride})" in said


def test_comparing_precisions_says_the_windows(folder: Path) -> None:
    done = headcount("score", folder, "-", "--compare", given=TEXT)
    assert done.status == 0 and "64 tokens  (4 windows, stride 14)" in done.out
    found = json.loads(headcount("score", folder, "-", "--compare", "--json", given=TEXT).out)
    assert (found["tokens"], found["windows"], found["stride"]) == (64, 4, 14)
    short = json.loads(headcount("score", folder, "-", "--json", given=TEXT[:30]).out)  # the last token is only predicted
    assert (short["tokens"], short["windows"], short["stride"]) == (29, None, None)
