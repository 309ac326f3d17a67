"""load, convert and Model on the fixtures: same answers by every road, wrong arguments named, nothing written on failure."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engine
from engine import checkpoint
from engine import loading as api
from engine.errors import BackendUnavailable, CheckpointError, ConversionError, EngineError, InputError, SpecMismatch, Unsupported

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
CHARACTERS = FIXTURES / "aiha-char" / "checkpoint.ckpt"


@pytest.fixture(scope="module")
def compact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine directory of the character model."""
    out = tmp_path_factory.mktemp("api") / "model"
    engine.convert(CHARACTERS, out)
    return out


@pytest.fixture(scope="module")
def model(compact: Path) -> engine.Model:
    return engine.load(compact)


def random_ids(model: engine.Model, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, model.spec.vocab, shape)


def test_importing_engine_imports_nothing_heavy() -> None:
    code = "import sys, engine; print([m for m in ('torch', 'numpy', 'tokenizers', 'safetensors') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_public_names() -> None:
    assert set(engine.__all__) == {"load", "convert", "Model", "ModelSpec", "errors", "__version__"} == set(dir(engine))
    assert engine.load is api.load and engine.Model is api.Model and engine.__version__
    assert list(inspect.signature(engine.load).parameters) == (
        ["path", "backend", "device", "dtype", "threads", "quantization", "config", "heads", "check", "masked", "strict", "options"]
    )
    assert list(inspect.signature(engine.convert).parameters) == [
        "source",
        "output_dir",
        "format",
        "config",
        "heads",
        "force",
        "strict",
        "options",
    ]
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        engine.lod  # noqa: B018


def test_directory_and_source_give_the_same_model(compact: Path, model: engine.Model) -> None:
    ids = random_ids(model, 2, 65)
    with engine.load(CHARACTERS) as direct:
        assert direct.spec == model.spec
        np.testing.assert_array_equal(direct.log_probs(ids), model.log_probs(ids))


def test_heads_intersect_what_a_directory_keeps(compact: Path, model: engine.Model) -> None:
    kept = [layer.attention.kept for layer in model.spec.layers]
    gone = {str(i): [heads[0]] for i, heads in enumerate(kept) if heads}
    with engine.load(compact, heads=gone) as fewer, engine.load(CHARACTERS, heads=gone) as direct:
        assert [layer.attention.kept for layer in fewer.spec.layers] == [heads[1:] for heads in kept]
        ids = random_ids(model, 1, 40)
        np.testing.assert_allclose(fewer.log_probs(ids), direct.log_probs(ids), rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="heads"):
        engine.load(compact, heads={"0": [99]})


def test_masked_runs_every_head_to_the_same_answer(model: engine.Model) -> None:
    with engine.load(CHARACTERS, masked=True) as masked:
        assert all(layer.attention.heads == layer.attention.source_heads for layer in masked.spec.layers)
        assert masked.cost().parameters > model.cost().parameters
        ids = random_ids(model, 2, 40)
        np.testing.assert_allclose(masked.log_probs(ids), model.log_probs(ids), rtol=0, atol=2e-5)


def test_saving_a_loaded_model_is_the_same_directory(compact: Path, model: engine.Model, tmp_path: Path) -> None:
    model.save(tmp_path / "again")
    first, second = checkpoint.read(compact), checkpoint.read(tmp_path / "again", check=True)
    assert first.spec == second.spec and first.tokenizer == second.tokenizer
    assert all(np.array_equal(first.weights[name], second.weights[name]) for name in first.weights)
    with pytest.raises(CheckpointError, match="force"):
        model.save(tmp_path / "again")
    model.save(tmp_path / "again", force=True)


@pytest.mark.parametrize(("name", "dtype"), [("fp32", "float32"), ("auto", "float32"), ("bf16", "bfloat16"), ("float16", "float16")])
def test_dtypes(compact: Path, model: engine.Model, name: str, dtype: str) -> None:
    with engine.load(compact, dtype=name) as other:
        assert other.explain().dtype == dtype and other.cost().dtype == dtype
        ids = random_ids(model, 1, 33)
        found = other.log_probs(ids)
        assert found.dtype == np.float32
        differences = np.abs(found - model.log_probs(ids))
        assert differences.max() == 0 if dtype == "float32" else 0 < differences.mean() < 0.1


def test_explain_names_the_backend_and_every_refusal(model: engine.Model) -> None:
    found = model.explain()
    assert found.backend == "cpu" and "instruction_set" in str(found)
    assert all(reason and name in str(found) and reason in str(found) for name, reason in found.refusals)
    assert json.loads(json.dumps(found.to_dict()))["dtype"] == "float32"


def test_forward_is_the_backends_own_tensor(model: engine.Model, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    ids = random_ids(model, 2, 9)
    model.save(tmp_path / "saved")
    with engine.load(tmp_path / "saved", backend="torch") as ours:
        for given in (ids, torch.from_numpy(ids), ids.tolist()):
            found = ours.forward(given)
            assert isinstance(found, torch.Tensor)
            np.testing.assert_allclose(found.detach().numpy(), ours.log_probs(ids), rtol=0, atol=2e-5)
    with pytest.raises(Unsupported, match="forward"):
        model.forward(ids)  # the cpu backend has no tensors of its own


@pytest.mark.parametrize(
    ("error", "said", "given"),
    [
        (InputError, "dtype", {"dtype": "int8"}),
        (InputError, "dtype", {"dtype": None}),
        (InputError, "dtype", {"dtype": ["fp32"]}),
        (InputError, "backend", {"backend": None}),
        (InputError, "device", {"device": 0}),
        (InputError, "threads", {"threads": 0}),
        (InputError, "threads", {"threads": True}),
        (InputError, "quantization: expected None or int8, found 'int4'", {"quantization": "int4"}),
        (InputError, "quantization", {"quantization": 8}),
        (InputError, "quantization", {"quantization": ["int8"]}),
        (BackendUnavailable, "torch: runs no int8 weights; backend triton or cpu does", {"quantization": "int8", "backend": "torch"}),
        (BackendUnavailable, "cpu: runs float32 and bfloat16", {"quantization": "int8", "dtype": "float16"}),
        (BackendUnavailable, "backend", {"backend": "tpu"}),
        (BackendUnavailable, "runs on GPUs", {"backend": "cuda", "device": "cpu"}),
        (BackendUnavailable, "device", {"device": "nonsense"}),
        (InputError, "config", {"config": "x.json"}),
        (InputError, "mem_length", {"mem_length": 3}),
        (InputError, "option nonsense", {"nonsense": 1}),
    ],
    ids=str,
)
def test_wrong_arguments_of_load(compact: Path, error: type[EngineError], said: str, given: dict[str, Any]) -> None:
    with pytest.raises(error, match=said):
        engine.load(compact, **given)


@pytest.mark.parametrize("path", ["", "no/such/place", None, 3, "bad\0name"], ids=repr)
def test_paths_that_lead_nowhere(path: Any, tmp_path: Path) -> None:
    with pytest.raises(EngineError):
        engine.load(path)
    with pytest.raises(EngineError):
        engine.convert(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def spoiled(compact: Path, names: list[str], value: float) -> checkpoint.Checkpoint:
    good = checkpoint.read(compact)
    weights = dict(good.weights)
    for name in names:
        weights[name] = weights[name].copy()
        weights[name].flat[-1] = value
    return replace(good, weights=weights)


def test_weights_that_are_not_finite_are_all_named(compact: Path, tmp_path: Path) -> None:
    names = list(checkpoint.read(compact).weights)
    for value in (np.nan, np.inf):
        checkpoint.save(spoiled(compact, [names[0], names[-1]], value), tmp_path / "bad", force=True)
        with pytest.raises(SpecMismatch) as caught:
            engine.load(tmp_path / "bad")
        assert len(caught.value.problems) == 2 and names[0] in str(caught.value) and names[-1] in str(caught.value)
        with pytest.raises(SpecMismatch):
            engine.convert(tmp_path / "bad", tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_a_model_larger_than_memory_is_refused_before_it_is_built(compact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else 2)
    with pytest.raises(EngineError, match="memory"):
        engine.load(compact)


def test_a_broken_tokenizer_is_found_at_load(compact: Path, tmp_path: Path) -> None:
    checkpoint.save(replace(checkpoint.read(compact), tokenizer='{"model": 3}'), tmp_path / "bad")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        engine.load(tmp_path / "bad")


def test_convert_reports_and_refuses_to_overwrite(compact: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = engine.convert(CHARACTERS, out)
    assert report.output_dir == str(out) and json.loads(json.dumps(report.to_dict()))["format"] == report.format
    assert report.kept == tuple(layer.attention.kept for layer in checkpoint.read(out, check=True).spec.layers)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ConversionError, match="force"):
        engine.convert(CHARACTERS, out)
    with pytest.raises(EngineError):
        engine.convert(CHARACTERS, out, force=True, nonsense=1)
    assert before == {path.name: path.read_bytes() for path in out.iterdir()}
    engine.convert(CHARACTERS, out, force=True)


def test_converting_an_engine_directory_prunes_it_further(compact: Path, tmp_path: Path) -> None:
    report = engine.convert(compact, tmp_path / "fewer", heads={"0": [0]})
    assert report.format == "engine" and 0 not in report.kept[0]
    with engine.load(tmp_path / "fewer", check=True) as fewer:
        assert fewer.spec.layers[0].attention.kept == report.kept[0]


def test_a_source_is_never_replaced_by_its_own_conversion(compact: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    engine.convert(compact, out)
    for target in (out, out / ".." / "out", tmp_path):
        with pytest.raises(EngineError):
            engine.convert(out, target, force=True)
    assert checkpoint.read(out, check=True).spec == checkpoint.read(compact).spec


def test_a_closed_model_says_so(compact: Path, tmp_path: Path) -> None:
    with engine.load(compact) as model:
        stream = model.stream([1], max_new_tokens=5)
        next(stream)
    model.close()  # twice is fine
    for call in (
        lambda: model.log_probs([[1]]),
        lambda: model.score([[1, 2]]),
        lambda: model.generate([1]),
        lambda: model.stream([1]),
        lambda: model.forward([[1]]),
        lambda: model.save(tmp_path / "x"),
        lambda: next(stream),
    ):
        with pytest.raises(InputError, match="closed"):
            call()
    assert model.cost().parameters > 0


def test_a_model_is_used_from_several_threads(model: engine.Model) -> None:
    ids = random_ids(model, 6, 20)
    results: dict[int, tuple[np.ndarray, list[int]]] = {}

    def work(n: int) -> None:
        results[n] = model.log_probs(ids[n : n + 1])[0], model.generate(ids[n], max_new_tokens=5, temperature=1, seed=n).ids

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for n in range(6):
        np.testing.assert_array_equal(results[n][0], model.log_probs(ids[n : n + 1])[0])
        assert results[n][1] == model.generate(ids[n], max_new_tokens=5, temperature=1, seed=n).ids
