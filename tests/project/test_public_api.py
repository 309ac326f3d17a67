"""The names a user writes: they may grow, never change. Each promise is a signature without its types."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import engine
from engine.formats.base import ConversionReport
from engine.runtime.scoring import Score
from engine.runtime.sequence import Completion, Token
from engine.spec.cost import Cost

ROOT = Path(__file__).parents[2]
SAMPLING = "max_new_tokens=128, temperature=0, top_k=None, top_p=None, seed=None, stop=None, logprobs=0"
PROMISES = {
    "load": "path, *, backend='auto', device='auto', dtype='auto', threads=None, quantization=None, config=None, heads=None, check=False, "
    "**options",
    "convert": "source, output_dir, *, format='auto', config=None, heads=None, force=False, **options",
    "Model.log_probs": "self, ids",
    "Model.score": "self, ids",
    "Model.generate": f"self, prompt, *, {SAMPLING}",
    "Model.stream": f"self, prompt, *, {SAMPLING}",
    "Model.encode": "self, ids, attention_mask=None, token_type_ids=None",
    "Model.logits": "self, ids, attention_mask=None, token_type_ids=None",
    "Model.save": "self, directory",
    "Model.explain": "self",
    "Model.close": "self",
    "Model.forward": "self, ids",
    "Model.cost": "self, **settings",
}
RECORDS = {
    Completion: ["ids", "text", "logprobs", "finish_reason"],
    Token: ["id", "text", "logprob"],
    Score: ["token_nll", "mean", "ppl"],
}


def promised(text: str) -> list[inspect.Parameter]:
    scope: dict[str, Callable[..., Any]] = {}
    exec(f"def promise({text}): ...", scope)
    return list(inspect.signature(scope["promise"]).parameters.values())


@pytest.mark.parametrize("name", PROMISES)
def test_a_signature_keeps_its_promise(name: str) -> None:
    function = engine
    for part in name.split("."):
        function = getattr(function, part)
    found = inspect.signature(function).parameters
    for index, promise in enumerate(promised(PROMISES[name])):
        assert promise.name in found, f"{name} lost {promise.name}"
        parameter = found[promise.name]
        assert (parameter.default, parameter.kind) == (promise.default, promise.kind), f"{name}: {promise.name}"
        if promise.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
            assert list(found)[index] == promise.name, f"{name}: {promise.name} moved"
    added = [p for p in found.values() if p.name not in [promise.name for promise in promised(PROMISES[name])]]
    assert all(p.default is not p.empty or p.kind is p.VAR_KEYWORD for p in added), f"{name}: an addition that every caller must give"


def test_the_package_offers_exactly_these_names() -> None:
    assert sorted(engine.__all__) == ["Model", "ModelSpec", "__version__", "convert", "errors", "load"]
    assert all(getattr(engine, name) is not None for name in engine.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = engine.nothing


@pytest.mark.parametrize(
    "first",
    [
        "import engine.loading",
        "import engine.formats.open",
        "import engine.export.onnx",
        "import engine.cli.headcount",
        "from engine import convert",
    ],
)
def test_load_and_convert_are_functions_whatever_was_imported_before(first: str) -> None:
    """A module of such a name would take the function's place when it is imported, wherever that is."""
    code = f"import types, engine; {first}; engine.Model; names = ('load', 'convert'); found = [getattr(engine, name) for name in names]\n"
    code += "assert all(isinstance(f, types.FunctionType) and f.__module__ == 'engine.loading' for f in found), found"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_module_has_the_name_of_something_the_package_offers() -> None:
    taken = {path.stem for path in (ROOT / "engine").iterdir()}
    assert taken & set(engine.__all__) == {"errors"}  # which is that module


def test_a_model_is_a_context_manager_that_knows_its_spec() -> None:
    assert {"__enter__", "__exit__"} <= set(dir(engine.Model))
    assert dataclasses.is_dataclass(engine.ModelSpec)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_a_result_keeps_its_fields(record: type) -> None:
    fields = {f.name for f in dataclasses.fields(record)} | {name for name in dir(record) if not name.startswith("_")}
    assert set(RECORDS[record]) <= fields


@pytest.mark.parametrize("record", [ConversionReport, Cost], ids=lambda record: record.__name__)
def test_a_report_is_frozen_and_turns_into_a_dict(record: type) -> None:
    assert record.__dataclass_params__.frozen
    assert callable(record.to_dict)


def test_the_command_answers_in_both_spellings() -> None:
    for command in ([sys.executable, "-m", "engine"], [sys.executable, "-c", "from engine.cli import main; main()"]):
        done = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        for verb in ("convert", "inspect", "verify", "generate", "score", "export", "bench", "env"):
            assert verb in done.stdout
