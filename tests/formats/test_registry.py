"""read_source: the file, the format, the configuration and the tokenizer it finds, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engine
from engine.checkpoint import read, save
from engine.checkpoint.tokenizer import Tokenizer
from engine.errors import ConversionError, EngineError
from engine.formats.read import convert_source, read_source
from engine.formats.source import open_source
from engine.formats.table import FORMATS, formats
from tests.support.sources import AihaSource, write_state

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
SOURCE = AihaSource(num_layers=1, vocab=5)


def refused(path: Path | str, **options: Any) -> str:
    with pytest.raises(ConversionError) as caught:
        read_source(path, **options)
    return str(caught.value)


# --- format


@pytest.mark.parametrize(
    ("folder", "name"), [("aiha-adaptive", "aiha-lab"), ("aiha-char", "aiha-lab"), ("fair-pers", "fair"), ("txl", "transformer-xl")]
)
def test_format_is_recognised_by_tensor_names(folder: str, name: str) -> None:
    checkpoint, report = read_source(FIXTURES / folder)
    assert report.format == checkpoint.provenance["format"] == name
    others = [other for other in formats() if other != name]
    for other in others:
        assert f"format: expected {other} (looked for" in refused(FIXTURES / folder, format=other)


@pytest.mark.parametrize("name", ["aiha-lab", "aiha", "AIHA_lab", "auto"])
def test_synonyms_of_a_format(name: str, tmp_path: Path) -> None:
    assert read_source(SOURCE.write(tmp_path), format=name)[1].format == "aiha-lab"


def test_synonyms_are_not_shared() -> None:
    names = [name for row in FORMATS for name in (row.name, *row.aliases)]
    assert len(set(names)) == len(names)
    assert {"fair", "adaptive-span", "transformer-xl", "txl"} <= set(names)


def test_unknown_format_and_unknown_tensors(tmp_path: Path) -> None:
    assert "format: expected auto, aiha-lab, fair, huggingface, transformer-xl, found 'gguf'" in refused(
        SOURCE.write(tmp_path), format="gguf"
    )
    text = refused(write_state(tmp_path / "checkpoint.ckpt", {f"h.{i}.weight": np.zeros(1, np.float32) for i in range(6)}))
    assert all(f"{name} (looked for " in text for name in formats())
    assert "h.0.weight, h.1.weight, h.2.weight, h.3.weight and 2 more" in text


# --- file


def test_directory_with_exactly_one_checkpoint(tmp_path: Path) -> None:
    path = SOURCE.write(tmp_path)
    assert read_source(tmp_path)[0].spec == read_source(str(path))[0].spec
    shutil.copy(path, tmp_path / "best.pth")
    assert "found best.pth, checkpoint.ckpt" in refused(tmp_path)
    assert "name the file itself" in refused(tmp_path)
    (tmp_path / "empty").mkdir()
    assert "found none" in refused(tmp_path / "empty")
    assert "no such file" in refused(tmp_path / "nowhere")


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin", ".safetensors"])
def test_suffixes_of_checkpoints(suffix: str, tmp_path: Path) -> None:
    path = SOURCE.write(tmp_path)
    expected, _ = read_source(path)
    if suffix == ".safetensors":
        from engine.checkpoint.tensor_file import write_tensors

        write_tensors(tmp_path / "x.safetensors", SOURCE.state())
        path.unlink()
    else:
        path.rename(tmp_path / f"x{suffix}")
    found, _ = read_source(tmp_path)
    assert found.spec == expected.spec
    for name, array in expected.weights.items():
        np.testing.assert_array_equal(found.weights[name], array)


# --- configuration


def test_configuration_beside_the_file_by_path_and_by_value(tmp_path: Path) -> None:
    path = SOURCE.write(tmp_path)
    beside, _ = read_source(path)
    (tmp_path / "config.json").rename(tmp_path / "other.json")
    assert "option mem_length" in refused(path)
    by_path, _ = read_source(path, config=tmp_path / "other.json")
    by_value, _ = read_source(path, config=SOURCE.config())
    flat, _ = read_source(path, config={"mem_length": 6, "same_length": True})
    by_option, _ = read_source(path, mem_length=np.int64(6), same_length=True)
    assert beside.spec == by_path.spec == by_value.spec == flat.spec == by_option.spec
    assert by_option.provenance["options"] == {"mem_length": 6, "same_length": True}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *[
            ("", "an empty file"),
            ("{", "JSON"),
            ("[1]", "a JSON object"),
            ('{"a": 1, "a": 2}', "twice"),
            ('{"a": NaN}', "NaN"),
            ("\xff", "JSON"),
        ],
        *[("[" * 5000, "nested"), ('{"model": {"num_layers": 1' + "0" * 5000 + "}}", "JSON")],
    ],
)
def test_configuration_that_is_no_json(text: str, expected: str, tmp_path: Path) -> None:
    path = SOURCE.write(tmp_path)
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    assert expected in refused(path)


def test_configuration_of_another_kind(tmp_path: Path) -> None:
    path = SOURCE.write(tmp_path)
    assert "config: expected a path or a mapping, found int" in refused(path, config=7)
    assert "nowhere.json" in refused(path, config=tmp_path / "nowhere.json")
    assert "config: expected JSON values" in refused(path, config={"model": {"num_layers": object()}})
    assert "options: expected JSON values" in refused(path, mem_length=float("nan"))


def test_edited_configurations_never_end_in_another_error(tmp_path: Path) -> None:
    """Every value of the configuration becomes every kind of JSON value in turn: a model, or a ConversionError."""
    source = replace(SOURCE, cutoffs=(2,), div_value=2, gates=((1.0, -1.0, 0.0),))
    path, outcomes = source.write(tmp_path), {"read": 0, "refused": 0}
    values: list[Any] = [None, True, False, 0, -1, 1, 7, 10**12, 0.5, 1e300, "", "6", [], [1], [[]], ["a", 1], {}, {"a": 1}]
    for section, names in (("model", list(source.config()["model"])), ("dataloader", ["mem_length", "seq_length"])):
        for name in [*names, "unheard"]:
            for value in values:
                config = source.config()
                (config["model"] if section == "model" else config["dataloader"]["test_dataloader"])[name] = value
                try:
                    checkpoint, _ = read_source(path, config=config)
                except ConversionError:
                    outcomes["refused"] += 1
                else:
                    outcomes["read"] += 1
                    assert checkpoint.spec.problems() == []
    print(outcomes)
    assert outcomes["read"] > 30 and outcomes["refused"] > 100


def test_mutated_sources_never_end_in_another_error(tmp_path: Path) -> None:
    path = SOURCE.write(tmp_path)
    whole, config = path.read_bytes(), (tmp_path / "config.json").read_bytes()
    rng, outcomes = random.Random(0), {"read": 0, "refused": 0}
    for turn in range(250):
        data = bytearray(whole if turn % 2 else config)
        for _ in range(rng.choice((1, 3))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data if turn % 2 else whole)
        (tmp_path / "config.json").write_bytes(config if turn % 2 else data)
        try:
            checkpoint, _ = read_source(path)
        except EngineError as error:
            str(error).encode()
            outcomes["refused"] += 1
        else:
            assert all(np.isfinite(array).all() for array in checkpoint.weights.values())
            outcomes["read"] += 1
    print(outcomes)
    assert min(outcomes.values()) > 25


# --- tokenizer


def test_characters_of_the_configuration_become_the_tokenizer(tmp_path: Path) -> None:
    path = SOURCE.write(tmp_path)
    checkpoint, _ = read_source(path, config=SOURCE.config() | {"chars": list("ab \né")})
    assert checkpoint.tokenizer is not None
    tokenizer = Tokenizer.from_json(checkpoint.tokenizer)
    assert tokenizer.encode("é\na") == [4, 3, 0] and tokenizer.decode([4, 3, 0]) == "é\na"


@pytest.mark.parametrize("key", ["vocab", "words", None])
def test_words_become_the_tokenizer(key: str | None, tmp_path: Path) -> None:
    path, tokens = SOURCE.write(tmp_path), ["<unk>", "</s>", "the", "of", "=)"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    options: dict[str, Any] = {"config": SOURCE.config() | {key: tokens}} if key else {"vocab": tmp_path / "vocab.txt"}
    checkpoint, _ = read_source(path, **options)
    assert checkpoint.tokenizer is not None
    assert Tokenizer.from_json(checkpoint.tokenizer).encode("of the\nwhat") == [3, 2, 1, 0]
    assert read_source(path)[0].tokenizer is None


def test_tokenizer_beside_the_source(tmp_path: Path) -> None:
    path = SOURCE.write(tmp_path)
    text = read_source(path, config=SOURCE.config() | {"chars": list("abcde")})[0].tokenizer
    assert text is not None
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    assert read_source(path)[0].tokenizer == text
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(EngineError, match="tokenizer"):
        read_source(path)


@pytest.mark.parametrize(
    ("chars", "expected"),
    [
        *[
            (list("abcd"), "config chars: expected 5 tokens, the size of the vocabulary, found 4"),
            (list("abcda"), "config chars[4]: expected each"),
        ],
        *[
            (["a", "b", "c", "d", 5], "config chars[4]: expected a token, found 5"),
            (["a", "b", "c", "d", ""], "config chars[4]: expected a token"),
        ],
        ("abcde", "config chars: expected a list of 5 tokens, found str"),
    ],
)
def test_characters_that_do_not_fit(chars: Any, expected: str, tmp_path: Path) -> None:
    assert expected in refused(SOURCE.write(tmp_path), config=SOURCE.config() | {"chars": chars})


def test_vocabulary_file_that_does_not_fit(tmp_path: Path) -> None:
    path = SOURCE.write(tmp_path)
    (tmp_path / "vocab.txt").write_text("a\nb\n", encoding="utf-8")
    assert "option vocab: expected 5 tokens" in refused(path, vocab=str(tmp_path / "vocab.txt"))
    (tmp_path / "vocab.txt").write_bytes(b"a\nb\n\xff\nd\ne\n")
    assert "text in UTF-8" in refused(path, vocab=str(tmp_path / "vocab.txt"))
    assert "nothing.txt" in refused(path, vocab=tmp_path / "nothing.txt")
    assert "option vocab: expected the path" in refused(path, vocab=7)


# --- what is written down


def test_provenance_says_what_was_converted_and_survives_saving(tmp_path: Path) -> None:
    path = SOURCE.write(tmp_path / "in")
    config = SOURCE.config() | {"chars": [chr(65 + i) for i in range(5)]}
    unhashed, _ = read_source(path, heads=[[0, 2]], output_scale=2.0, config=config)
    source = open_source(path, config=config)
    checkpoint, report = convert_source(source, {"output_scale": 2.0}, heads=[[0, 2]], hashed=True)
    p = checkpoint.provenance
    assert unhashed.provenance == {name: value for name, value in p.items() if name != "sha256"}
    assert p["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert p["source"] == "checkpoint.ckpt" and str(tmp_path) not in json.dumps(p)
    assert p["options"] == {"output_scale": 2.0} and p["kept"] == [[0, 2]] and p["headcount_version"] == engine.__version__
    assert p["config"]["model"]["num_layers"] == 1 and "chars" not in p["config"]
    save(checkpoint, tmp_path / "out")
    again = read(tmp_path / "out", check=True)
    assert again.spec == checkpoint.spec and again.provenance == p and again.tokenizer == checkpoint.tokenizer
    assert report.to_dict()["kept"] == ((0, 2),) and report.output_dir is None
