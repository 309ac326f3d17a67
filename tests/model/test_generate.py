"""generate, stream, score and log_probs of real models, held against the full forward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engine
from engine.errors import InputError

ROOT = Path(__file__).parents[2]
SOURCES = {
    "aiha-char": ROOT / "tests" / "fixtures" / "aiha-char" / "checkpoint.ckpt",
    "aiha-adaptive": ROOT / "tests" / "fixtures" / "aiha-adaptive" / "checkpoint.ckpt",
    "shakespeare": ROOT / "examples" / "shakespeare" / "gated.ckpt",
}
GAP = 1e-4  # a token is decided where the best beats the second by more


@pytest.fixture(scope="module", params=["aiha-char", "aiha-adaptive"])
def model(request: pytest.FixtureRequest) -> engine.Model:
    return engine.load(SOURCES[request.param])


@pytest.fixture(scope="module")
def shakespeare() -> engine.Model:
    return engine.load(SOURCES["shakespeare"])


def prompts(model: engine.Model) -> list[list[int]]:
    random = np.random.default_rng(0)
    return [random.integers(0, model.spec.vocab, n).tolist() for n in (1, 2, 63, 65, 300)]


def test_decoding_equals_the_full_forward(model: engine.Model) -> None:
    for prompt in prompts(model):
        done = model.generate(prompt, max_new_tokens=12, logprobs=2)
        full = model.log_probs([prompt + done.ids])[0]
        for i, entry in enumerate(done.logprobs):
            row = full[len(prompt) - 1 + i]
            assert abs(entry.logprob - row[entry.id]) < 1e-4
            best, second = np.sort(row)[::-1][:2]
            if best - second > GAP:
                assert entry.id == row.argmax()
            assert entry.top[0] == (entry.id, entry.logprob)


@pytest.mark.parametrize("given", [{}, {"temperature": 0.8, "seed": 5}, {"temperature": 1, "top_k": 7, "top_p": 0.9, "seed": 1}], ids=str)
def test_a_batch_of_unequal_prompts_gives_what_each_gives_alone(model: engine.Model, given: dict[str, Any]) -> None:
    together = model.generate(prompts(model), max_new_tokens=8, **given)
    for prompt, done in zip(prompts(model), together, strict=True):
        alone = model.generate(prompt, max_new_tokens=8, **given)
        assert done.ids == alone.ids and done.finish_reason == "length"
        np.testing.assert_allclose([e.logprob for e in done.logprobs], [e.logprob for e in alone.logprobs], rtol=0, atol=1e-4)


def test_score_is_the_log_probability_of_what_came(model: engine.Model) -> None:
    rows = prompts(model)
    found = model.score(rows)
    assert found.token_nll.shape == (len(rows), 299)
    for nll, row in zip(found.token_nll, rows, strict=True):
        expected = -model.log_probs([row])[0][np.arange(len(row) - 1), row[1:]]
        np.testing.assert_allclose(nll[: len(row) - 1], expected, rtol=0, atol=1e-4)
        assert np.isnan(nll[len(row) - 1 :]).all()
    assert found.mean == pytest.approx(float(np.nanmean(found.token_nll.astype(np.float64))), abs=1e-6)
    assert model.score(rows, segment=50).mean == pytest.approx(found.mean, abs=1e-5)
    with pytest.raises(InputError, match="segment"):
        model.score(rows, segment=0)


def test_log_probs_are_a_distribution(model: engine.Model) -> None:
    found = model.log_probs(np.array([prompts(model)[2]]))
    np.testing.assert_allclose(np.exp(found.astype(np.float64)).sum(-1), 1, rtol=0, atol=1e-5)


def test_streamed_text_joined_is_the_generated_text(shakespeare: engine.Model) -> None:
    given: dict[str, Any] = {"max_new_tokens": 60, "temperature": 0.9, "seed": 2, "logprobs": 1}
    done = shakespeare.generate("KING", **given)
    tokens = list(shakespeare.stream("KING", **given))
    assert [t.id for t in tokens] == done.ids and "".join(t.text or "" for t in tokens) == done.text
    assert [(t.id, t.logprob, t.top) for t in tokens] == [(e.id, e.logprob, e.top) for e in done.logprobs]
    assert shakespeare.tokenizer is not None and done.text == shakespeare.tokenizer.decode(done.ids)
    assert done.seed == 2 and done.to_dict()["finish_reason"] == "length"


def test_stop_texts_and_ids(shakespeare: engine.Model) -> None:
    whole = shakespeare.generate("KING", max_new_tokens=80)
    assert whole.text is not None and shakespeare.tokenizer is not None
    stop = whole.text[20:25]
    done = shakespeare.generate("KING", max_new_tokens=80, stop=[stop, "\x00never"])
    assert done.finish_reason == "stop" and done.text == whole.text[: whole.text.index(stop)]
    assert done.ids == whole.ids[: whole.text.index(stop) + len(stop)]
    assert "".join(t.text or "" for t in shakespeare.stream("KING", max_new_tokens=80, stop=stop)) == done.text
    newline = shakespeare.tokenizer.encode("\n")[0]
    ended = shakespeare.generate("KING", max_new_tokens=200, stop=newline)
    assert ended.ids[-1] == newline and ended.ids.count(newline) == 1 and ended.text == shakespeare.tokenizer.decode(ended.ids[:-1])


def test_a_stream_can_be_closed_and_the_model_goes_on(shakespeare: engine.Model) -> None:
    stream = shakespeare.stream("KING", max_new_tokens=10**6)
    first = next(stream)
    stream.close()
    assert next(iter(shakespeare.stream("KING", max_new_tokens=1))) == first


@pytest.mark.parametrize(
    ("prompt", "given", "said"),
    [
        ("", {}, "at least one token"),
        ([], {}, "at least one token"),
        ("漢", {}, "position 0"),
        (["KING", ""], {}, r"prompt\[1\]"),
        ([1, 65], {}, r"prompt\[1\].*vocabulary of 65"),
        ([[1], [2, -1]], {}, r"prompt\[1\]\[1\]"),
        ([1.0], {}, "integers"),
        (None, {}, "prompt"),
        (7, {}, "prompt"),
        ("KING", {"max_tokens": 5}, "max_tokens"),
        ("KING", {"temperature": -1, "top_p": 2}, "top_p"),
    ],
    ids=repr,
)
def test_wrong_prompts_and_options(shakespeare: engine.Model, prompt: Any, given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        shakespeare.generate(prompt, **given)
    with pytest.raises(InputError):
        shakespeare.stream(prompt, **given)


def test_text_needs_a_tokenizer() -> None:
    with engine.load(SOURCES["aiha-adaptive"]) as model:
        if model.tokenizer is None:
            with pytest.raises(InputError, match="no tokenizer"):
                model.generate("text")
            with pytest.raises(InputError, match="no tokenizer"):
                model.generate([1], stop="text")
            assert model.generate([1], max_new_tokens=1).text is None
