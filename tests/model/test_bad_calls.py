"""Wrong calls of a good model, conversions killed half way, and wrong usage of the command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engine
from engine.errors import EngineError, InputError
from tests.support.command import LETTERS, headcount, nothing_written, write_source

pytest.importorskip("torch")
ROOT = Path(__file__).parents[2]
VOCAB = len(LETTERS)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("calls") / "source")


@pytest.fixture(scope="module")
def model(source: Path) -> engine.Model:
    return engine.load(source)


# --- tokens and prompts

CALLS: dict[str, Callable[[engine.Model, list[int]], Any]] = {
    "log_probs": lambda model, row: model.log_probs([row]),
    "score": lambda model, row: model.score([row]),
    "forward": lambda model, row: model.forward([row]),
    "generate": lambda model, row: model.generate(row),
    "generate batch": lambda model, row: model.generate([row, [1]]),
    "stream": lambda model, row: model.stream(row),
    "trace": lambda model, row: next(iter(model.trace(row))),
    "log_probs array": lambda model, row: model.log_probs(np.array([row], np.int64)),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("token", [VOCAB, -1, 2**31, -(2**63), 2**63 - 1])
def test_token_id_out_of_range(call: str, token: int, model: engine.Model) -> None:
    with pytest.raises(InputError, match=rf"\[1\]: expected a token id from 0 to {VOCAB - 1} \(a vocabulary of {VOCAB}\), found {token}$"):
        CALLS[call](model, [3, token])


@pytest.mark.parametrize("call", CALLS)
def test_no_tokens_at_all(call: str, model: engine.Model) -> None:
    with pytest.raises(InputError, match="expected at least one token id, found none"):
        CALLS[call](model, [])


@pytest.mark.parametrize("ids", [np.zeros((2, 0), np.int64), np.zeros((0, 3), np.int64), [], [[], [1]], [[1], []]], ids=str)
def test_batches_with_nothing_in_them(ids: Any, model: engine.Model) -> None:
    for call in (model.log_probs, model.score, model.forward):
        with pytest.raises(InputError, match="at least one"):
            call(ids)


@pytest.mark.parametrize(
    "ids",
    [None, 3, "abc", [1, 2], [[1.0]], [["a"]], [[True]], [[None]], [[[1]]], np.zeros((1, 2)), np.zeros(3, int), {1: 2}, [[10**40]]],
    ids=str,
)
def test_ids_of_the_wrong_kind(ids: Any, model: engine.Model) -> None:
    for call in (model.log_probs, model.score, model.forward):
        with pytest.raises(InputError, match=r"ids"):
            call(ids)


@pytest.mark.parametrize("prompt", [None, 3, 1.5, [1.5], ["a", 3], [[1], ["x"]], {}, b"abc", [b"a"], np.zeros((1, 1, 1), int)], ids=repr)
def test_prompts_of_the_wrong_kind(prompt: Any, model: engine.Model) -> None:
    with pytest.raises(InputError, match="prompt"):
        model.generate(prompt)


@pytest.mark.parametrize("text", ["", "1", "ab cd", "\ud800", "a\0"], ids=ascii)
def test_text_that_is_empty_or_has_unknown_characters(text: str, model: engine.Model, source: Path) -> None:
    with pytest.raises(InputError, match=r"prompt|text"):
        model.generate(text)
    done = headcount("generate", source, "--prompt", "-", given=text)
    assert (done.status, done.out) == (1, "") and done.err.startswith("InputError: ")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[
            ("temperature", -1),
            ("temperature", float("nan")),
            ("temperature", float("inf")),
            ("temperature", "1"),
            ("temperature", 10**400),
        ],
        *[
            ("top_k", 0),
            ("top_k", -3),
            ("top_k", 1.5),
            ("top_p", 0),
            ("top_p", 1.01),
            ("top_p", float("nan")),
            ("seed", -1),
            ("seed", 2**64),
        ],
        *[
            ("max_new_tokens", 0),
            ("max_new_tokens", None),
            ("stop", ""),
            ("stop", [VOCAB]),
            ("stop", [None]),
            ("logprobs", -1),
            ("beams", 4),
        ],
    ],
)
def test_sampling_options_out_of_range(option: str, value: Any, model: engine.Model) -> None:
    for call in (model.generate, model.stream):
        with pytest.raises(InputError, match=option):
            call([1], **{option: value})


@pytest.mark.parametrize("segment", [0, -1, 1.5, "3", True])
def test_segment_that_is_none(segment: Any, model: engine.Model) -> None:
    with pytest.raises(InputError, match="segment"):
        model.score([[1, 2]], segment=segment)


@pytest.mark.parametrize("text", ["", "a", "abc"])
def test_score_of_too_little_text(text: str, source: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text(text)
    batch = 2 if len(text) == 3 else 1
    done = headcount("score", source, tmp_path / "text", "--batch", batch)
    assert (done.status, done.out) == (1, "") and f"at least two tokens in each of {batch} rows" in done.err


@pytest.mark.parametrize("content", [b"\xff\xfe", None])
def test_text_file_that_cannot_be_read(content: bytes | None, source: Path, tmp_path: Path) -> None:
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    for arguments in (["score", source, path], ["verify", source, "--against", source, "--text", path]):
        done = headcount(*arguments)
        assert (done.status, done.out) == (1, "") and "a readable UTF-8 text" in done.err


def test_text_without_a_tokenizer() -> None:
    path = ROOT / "tests" / "fixtures" / "aiha-char"
    for arguments in (["generate", path, "--prompt", "a"], ["score", path, "-"]):
        done = headcount(*arguments, given="abc")
        assert (done.status, done.out) == (1, "") and "tokenizer" in done.err


# --- killed conversions


def test_killed_conversion_leaves_no_half_directory(source: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.support.killed", str(source), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)  # a bound on a hang
    assert done.returncode == 0, done.stderr


# --- usage


@pytest.mark.parametrize(
    "arguments",
    [
        *[
            ["nonsense"],
            ["convert"],
            ["convert", "a"],
            ["convert", "a", "b", "c"],
            ["inspect"],
            ["verify", "a"],
            ["generate", "a"],
            ["score", "a"],
        ],
        *[["env", "a"], ["convert", "a", "b", "--nonsense"], ["score", "a", "-", "--batch", "0"], ["score", "a", "-", "--batch", "x"]],
        *[
            ["score", "a", "-", "--drop-partial"],
            ["score", "a", "-", "--segment", "0"],
            ["generate", "a", "--prompt", "b", "--max-new-tokens", "0"],
        ],
        *[
            ["verify", "a", "--against", "b", "--tolerance", "-1"],
            ["inspect", "a", "--rows", "0"],
            ["generate", "a", "--prompt", "b", "--threads", "0"],
        ],
        *[["convert", "a", "b", "-o", "mem_length"], ["convert", "a", "b", "-o", "=3"], ["convert", "a", "b", "-o", "x=1", "-o", "x=2"]],
        *[
            ["inspect", "a", "-o", "heads=[]"],
            ["convert", "a", "b", "-o", "masked=true"],
            ["bench", "latency"],
            ["generate", "a", "--prompt"],
        ],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_status_2(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with nothing_written(tmp_path):
        done = headcount(*arguments)
    assert (done.status, done.out) == (2, "")
    assert "Error: " in done.err and "Traceback" not in done.err


def test_the_command_itself_prints_no_traceback(tmp_path: Path) -> None:
    """As a shell sees it, with its exit status."""
    for arguments, status in ((["inspect", tmp_path / "none"], 1), (["inspect"], 2), (["env"], 0)):
        done = subprocess.run([sys.executable, "-m", "engine", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == status
        assert "Traceback" not in done.stderr and bool(done.stderr) == bool(status)


def test_an_output_that_is_closed_early_is_no_crash(source: Path) -> None:
    code = f"import sys; from engine import cli; cli.main(['inspect', {str(source)!r}, '--json'])"
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=closed, stderr=subprocess.PIPE, text=True)
    assert done.returncode != 0 and "Traceback" not in done.stderr


def test_an_output_without_our_characters_is_no_crash(source: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "engine", "inspect", str(source)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "?" in done.stdout and "layer" in done.stdout


def test_every_error_has_one_root() -> None:
    kinds = [value for value in vars(engine.errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert len(kinds) >= 6 and all(issubclass(kind, EngineError) for kind in kinds)
