"""export onnx: what ONNX Runtime computes from the file, before and after its optimiser, and refusals that leave nothing behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engine
from engine.errors import CheckpointError, EngineError, Unsupported
from engine.export import onnx_graph
from engine.export.onnx import export_onnx
from tests.support.command import headcount
from tests.support.hugging_face_sources import encoder, gpt2

pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
FIXTURE = Path(__file__).parents[1] / "fixtures" / "hf-bert-tokcls"
PRUNED = {0: [1], 1: [0, 1, 2], 2: [0, 2]}
MASK = np.array([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]])
CLOSE = 1e-4


def run(path: Path, ids: np.ndarray, mask: np.ndarray, types: np.ndarray | None = None) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids) if types is None else types}
    wanted = {value.name for value in session.get_inputs()}
    result: np.ndarray = session.run(None, {name: array for name, array in given.items() if name in wanted})[0]
    return result


@pytest.mark.parametrize("task", ["Model", "ForTokenClassification", "ForSequenceClassification", "ForMaskedLM"])
@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "distilbert"])
def test_the_file_answers_as_the_model(kind: str, task: str, tmp_path: Path) -> None:
    source = encoder(kind, task, seed=5)
    source.write(tmp_path, PRUNED, pruned_heads={str(layer): heads for layer, heads in PRUNED.items()})
    ids = np.random.default_rng(1).integers(2, 41, MASK.shape)
    ids[MASK == 0] = source.config["pad_token_id"]
    types = np.array([[0, 0, 0, 1, 1, 1, 1]] * 2) if kind == "bert" else None
    path = export_onnx(tmp_path, tmp_path / "model.onnx")
    found = run(path, ids, MASK, types)
    with engine.load(tmp_path) as model:
        expected = (model.encode if task == "Model" else model.logits)(ids, MASK, types)
    rows = slice(None) if expected.ndim == 2 else MASK == 1
    assert found.shape == expected.shape
    assert np.abs(found[rows] - expected[rows]).max() < CLOSE
    outputs = [value.name for value in onnx.load(path).graph.output]
    assert outputs == ["last_hidden_state" if task == "Model" else "logits"]


@pytest.mark.parametrize("activation", ["relu", "gelu_new", "quick_gelu", "silu"])
def test_activations(activation: str, tmp_path: Path) -> None:
    source = encoder(hidden_act=activation)
    ids = np.random.default_rng(1).integers(2, 41, (1, 9))
    with engine.load(source.write(tmp_path)) as model:
        expected = model.logits(ids)
    assert np.abs(run(export_onnx(tmp_path, tmp_path / "m.onnx"), ids, np.ones_like(ids)) - expected).max() < CLOSE


def test_the_optimiser_fuses_each_layer_with_its_own_heads(tmp_path: Path) -> None:
    optimizer = pytest.importorskip("onnxruntime.transformers.optimizer")
    assert headcount("export", "onnx", FIXTURE / "pruned", tmp_path / "model.onnx").status == 0
    fused = optimizer.optimize_model(str(tmp_path / "model.onnx"), model_type="bert", num_heads=0, hidden_size=0, opt_level=0)
    nodes = [node for node in fused.model.graph.node if node.op_type == "Attention"]
    assert [next(a.i for a in node.attribute if a.name == "num_heads") for node in nodes] == [4, 6, 2]
    fused.save_model_to_file(str(tmp_path / "fused.onnx"))
    expected = np.load(FIXTURE / "expected.npz")
    seen = expected["attention_mask"] == 1
    for name in ("model.onnx", "fused.onnx"):
        found = run(tmp_path / name, expected["input_ids"], expected["attention_mask"])
        assert np.abs(found - expected["logits_pruned"])[seen].max() < CLOSE


def test_scales_and_masks_are_in_the_file(tmp_path: Path) -> None:
    scales = encoder().mask({0: [2]}) * np.float32(0.5)
    path = encoder().write(tmp_path / "dense")
    ids = np.array([[3, 4, 5]])
    with engine.load(path, heads=scales) as model:
        expected = model.logits(ids)
    assert np.abs(run(export_onnx(path, tmp_path / "m.onnx", heads=scales), ids, np.ones_like(ids)) - expected).max() < CLOSE


def test_tied_words_stand_in_the_file_once(tmp_path: Path) -> None:
    path = export_onnx(encoder("bert", "ForMaskedLM").write(tmp_path / "tied"), tmp_path / "tied.onnx")
    names = [tensor.name for tensor in onnx.load(path).graph.initializer]
    assert "embedding.0" in names and "head.0" not in names


def refused(call: Any, error: type[EngineError], message: str, directory: Path) -> None:
    before = sorted(item.name for item in directory.iterdir())
    with pytest.raises(error, match=message):
        call()
    assert sorted(item.name for item in directory.iterdir()) == before


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense, out = encoder().write(tmp_path / "dense"), tmp_path / "m.onnx"
    language = gpt2().write(tmp_path / "gpt2")
    refused(lambda: export_onnx(language, out), Unsupported, "an encoder, found a causal language model", tmp_path)
    refused(lambda: export_onnx(dense, dense, force=True), CheckpointError, "found a directory", tmp_path)
    export_onnx(dense, out)
    refused(lambda: export_onnx(dense, out), CheckpointError, "one that exists", tmp_path)
    export_onnx(dense, out, force=True)
    monkeypatch.setattr(onnx_graph, "MOST_BYTES", 1000)
    refused(lambda: export_onnx(dense, out, force=True), Unsupported, "GiB of weights", tmp_path)
    assert onnx.load(out).producer_name == "headcount"
