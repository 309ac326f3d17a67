"""Each verb on a small model: what it prints, its JSON, its exit status."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

import engine
from engine import checkpoint
from engine.formats.base import ConversionReport
from tests.support.command import KEPT, LETTERS, SOURCE, headcount, write_source

pytest.importorskip("torch")
TEXT = "".join(LETTERS[i] for i in np.random.default_rng(3).integers(0, len(LETTERS), 70))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("cli") / "source")


@pytest.fixture(scope="module")
def compact(source: Path) -> Path:
    out = source.parents[1] / "compact"
    engine.convert(source, out)
    return out


@pytest.fixture(scope="module")
def model(compact: Path) -> engine.Model:
    return engine.load(compact)


def answer(*arguments: object, given: str = "") -> str:
    """What a command that must succeed prints."""
    done = headcount(*arguments, given=given)
    assert (done.status, done.err) == (0, "")
    return done.out


# --- convert


def test_convert(source: Path, tmp_path: Path) -> None:
    said = answer("convert", source, tmp_path / "out")
    assert f"aiha-lab → {tmp_path / 'out'}: {sum(map(len, KEPT))} of 6 heads kept" in said
    stored = checkpoint.read(tmp_path / "out", check=True)
    assert [list(layer.attention.kept) for layer in stored.spec.layers] == KEPT
    assert answer("convert", source, tmp_path / "quiet", "--quiet") == ""


def test_convert_json_is_the_report(source: Path, tmp_path: Path) -> None:
    found = json.loads(answer("convert", source, tmp_path / "out", "--json", "--format", "aiha-lab", "-o", "mem_length=5"))
    report = engine.convert(source, tmp_path / "again", mem_length=5)
    assert isinstance(report, ConversionReport)
    assert found == json.loads(json.dumps(report.to_dict() | {"output_dir": str(tmp_path / "out")}))
    assert any("the option 5 replaces 6" in note for note in found["notes"])


def test_convert_with_configuration_and_heads_from_elsewhere(source: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.json").write_text(json.dumps(SOURCE.config()))
    (tmp_path / "heads.json").write_text(json.dumps({"0": [KEPT[0][0]]}))
    answer("convert", source, tmp_path / "out", "--config", tmp_path / "elsewhere.json", "--heads", tmp_path / "heads.json")
    stored = checkpoint.read(tmp_path / "out")
    assert stored.tokenizer is None
    assert [list(layer.attention.kept) for layer in stored.spec.layers] == [KEPT[0][1:], KEPT[1]]


def test_option_values_are_json_or_text(source: Path, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(LETTERS))
    answer(
        "convert",
        source,
        tmp_path / "out",
        "-o",
        "output_scale=[0.5, 2]",
        "-o",
        f"vocab={tmp_path / 'vocab.txt'}",
        "-o",
        "same_length=true",
    )
    stored = checkpoint.read(tmp_path / "out")
    assert stored.spec.layers[0].attention.scaled and stored.tokenizer is not None
    assert stored.provenance["options"] == {"output_scale": [0.5, 2], "same_length": True}


# --- inspect


def test_inspect(compact: Path, source: Path) -> None:
    said = answer("inspect", compact)
    assert f"{sum(map(len, KEPT))} of 6 heads" in said and "prefill of 192 tokens" in said
    assert "checkpoint.ckpt" in said and "sha256" in said
    assert answer("inspect", source).split("\n")[3:] == said.split("\n")[3:]  # the same model without a directory


def test_inspect_json_takes_rows_batch_and_dtype(compact: Path, model: engine.Model) -> None:
    found = json.loads(answer("inspect", compact, "--json", "--rows", "7", "--batch", "3", "--dtype", "bf16"))
    cost = model.cost(rows=7, batch=3, dtype="bfloat16")
    assert found["cost"] == json.loads(json.dumps(cost.to_dict()))
    assert found["kept"] == KEPT and found["stored_bytes"] == 2 * cost.weight_bytes


def test_inspect_plot(compact: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    answer("inspect", compact, "--plot", tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    done = headcount("inspect", compact, "--plot", tmp_path / "none" / "a.png")
    assert (done.status, done.out) == (1, "") and done.err.startswith("CheckpointError") and not (tmp_path / "none").exists()


# --- verify


def test_verify(compact: Path, source: Path) -> None:
    said = answer("verify", compact, "--against", source)
    assert all(place in said for place in ("embedding", "layer 0", "layer 1", "log-probabilities", "within 0.0002"))
    found = json.loads(answer("verify", compact, "--against", source.parent, "--json", "--tolerance", "1e-5"))
    assert found["passed"] and len(found["layers"]) == 3 and 0 < found["log_probs"] <= found["tolerance"] == 1e-5


def test_verify_on_a_text(compact: Path, source: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text(TEXT)
    assert "on 70 tokens" in answer("verify", compact, "--against", source, "--text", tmp_path / "text")
    assert "on 70 tokens" in answer("verify", compact, "--against", source, "--text", "-", given=TEXT)


def test_verify_of_another_model_fails(compact: Path, source: Path) -> None:
    done = headcount("verify", compact, "--against", source, "-o", "mem_length=5")
    assert done.status == 1 and "BEYOND 0.0002" in done.out and "--option" in done.err
    done = headcount("verify", compact, "--against", source, "-o", "mem_length=5", "--json", "--quiet")
    assert (done.status, done.err, json.loads(done.out)["passed"]) == (1, "", False)


# --- generate


def test_generate(compact: Path, model: engine.Model) -> None:
    expected = model.generate("abc", max_new_tokens=12).text
    assert answer("generate", compact, "--prompt", "abc", "--max-new-tokens", 12) == f"abc{expected}\n"
    assert answer("generate", compact, "--prompt", "-", "--max-new-tokens", 12, given="abc") == f"abc{expected}\n"


def test_generate_json_and_sampling(compact: Path, model: engine.Model) -> None:
    drawn = [
        "--temperature",
        1.5,
        "--top-k",
        9,
        "--top-p",
        0.9,
        "--seed",
        4,
        "--stop",
        "q",
        "--stop",
        "zz",
        "--threads",
        1,
        "--dtype",
        "fp32",
    ]
    found = json.loads(answer("generate", compact, "--prompt", "abc", "--max-new-tokens", 20, "--json", *drawn))
    same = model.generate("abc", max_new_tokens=20, temperature=1.5, top_k=9, top_p=0.9, seed=4, stop=["q", "zz"])
    assert found == {"prompt": "abc", "text": same.text, "ids": same.ids, "finish_reason": same.finish_reason, "seed": 4}


def test_generate_prints_nothing_when_it_cannot_begin(compact: Path) -> None:
    for wrong in (["--temperature", -1], ["--top-p", 2], ["--stop", ""]):
        done = headcount("generate", compact, "--prompt", "abc", *wrong)
        assert (done.status, done.out) == (1, "") and done.err.startswith("InputError")


# --- score


@pytest.mark.parametrize(
    ("flags", "rows", "length"),
    [
        ([], 1, 70),
        (["--batch", 3], 3, 23),
        (["--batch", 3, "--segment", 5], 3, 23),
        (["--batch", 3, "--segment", 5, "--drop-partial"], 3, 21),
    ],
    ids=str,
)
def test_score(flags: list[object], rows: int, length: int, compact: Path, model: engine.Model, tmp_path: Path) -> None:
    (tmp_path / "text").write_text(TEXT)
    assert model.tokenizer is not None
    ids = np.array(model.tokenizer.encode(TEXT))[: 70 // rows * rows].reshape(rows, -1)[:, :length]
    expected = model.score(ids).mean
    found = json.loads(answer("score", compact, tmp_path / "text", "--json", *flags))
    assert found["tokens"] == rows * (length - 1)
    assert found["nll"] == pytest.approx(expected, abs=1e-5)
    assert found["ppl"] == pytest.approx(math.exp(expected), rel=1e-5)
    assert found["bits_per_token"] == pytest.approx(expected / math.log(2), rel=1e-5)
    assert f"ppl {found['ppl']:.4f}" in answer("score", compact, "-", *flags, given=TEXT)


def test_infinite_perplexity_is_null_in_json(compact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.runtime.scoring import Score

    monkeypatch.setattr(engine.Model, "score", lambda *_, **__: Score(np.zeros((1, 1), np.float32), 800.0, math.inf))
    assert json.loads(answer("score", compact, "-", "--json", given="abc"))["ppl"] is None
    assert "ppl inf" in answer("score", compact, "-", given="abc")


# --- help


@pytest.mark.parametrize("verb", ["convert", "inspect", "verify", "generate", "score", "env"])
def test_help_is_one_clear_line_and_every_option_has_one(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    first = next(line for line in answer("--help").splitlines() if line.startswith(f"  {verb} "))
    assert first.endswith(".") and "..." not in first
    said = answer(verb, "--help")
    assert first.split(None, 1)[1] in " ".join(said.split())
    from typer.main import get_command

    command = get_command(engine.cli.app).commands[verb]  # type: ignore[attr-defined]
    assert [parameter.name for parameter in command.params if not parameter.help] == []


def test_no_arguments_show_the_help() -> None:
    done = headcount()
    assert done.status == 2 and "Commands:" in done.out + done.err
    assert "[pruned]" in answer("convert", "--help")
