"""A compact directory against its source with its heads masked: agreement, and every planted fault found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import engine
from engine import checkpoint
from engine.checkpoint import Checkpoint
from engine.errors import InputError
from engine.measure.verify import Comparison, compare, sample_ids
from tests.support.command import KEPT, headcount, write_source
from tests.support.sources import AihaSource

pytest.importorskip("torch")
FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("verify") / "source")


@pytest.fixture
def compact(source: Path, tmp_path: Path) -> Path:
    engine.convert(source, tmp_path / "compact")
    return tmp_path / "compact"


def saved_with(compact: Path, name: str, change: float) -> None:
    """One number of a tensor changed, and every digest made anew."""
    good = checkpoint.read(compact)
    weights = {key: array.copy() for key, array in good.weights.items()}
    weights[name].flat[weights[name].size // 2] += change
    checkpoint.save(Checkpoint(good.spec, weights, good.provenance, good.tokenizer), compact, force=True)


def test_masked_computes_every_head_and_compact_the_kept_ones(source: Path, compact: Path) -> None:
    with engine.load(source, masked=True) as masked, engine.load(compact) as model:
        assert [layer.attention.heads for layer in masked.spec.layers] == [3, 3]
        assert [list(layer.attention.kept) for layer in model.spec.layers] == KEPT
        assert sum(map(len, KEPT)) < 6
        found = compare(model, masked, sample_ids(model))
    assert found.layers[0] == 0 and max(found.layers) < 1e-5  # 0 where a unit adds a masked head's zeros without rounding
    assert found.log_probs < 1e-5 and abs(found.nll) < 1e-6 and found.within(1e-5)


@pytest.mark.parametrize("name", ["fair-pers", "txl"])
def test_heads_chosen_by_hand_in_the_other_formats(name: str, tmp_path: Path) -> None:
    (tmp_path / "heads.json").write_text(json.dumps({"0": [0, 2], "1": [1]}))
    heads = ["--heads", tmp_path / "heads.json"]
    assert headcount("convert", FIXTURES / name, tmp_path / "out", *heads).status == 0
    assert headcount("verify", tmp_path / "out", "--against", FIXTURES / name, *heads).status == 0
    done = headcount("verify", tmp_path / "out", "--against", FIXTURES / name)  # the dense source is another model
    assert done.status == 1 and "BEYOND" in done.out and "--heads" in done.err


def test_a_wrong_byte_is_found_by_its_digest(source: Path, compact: Path) -> None:
    path = compact / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    done = headcount("verify", compact, "--against", source)
    assert done.status == 1 and done.out == "" and "expected digest" in done.err


def test_a_wrong_weight_with_a_right_digest_is_found_in_its_layer_and_after(source: Path, compact: Path) -> None:
    saved_with(compact, "layers.1.attention.output", 0.5)
    done = headcount("verify", compact, "--against", source, "--json")
    found = json.loads(done.out)
    assert done.status == 1 and not found["passed"]
    assert found["layers"][0] == 0 and found["layers"][1] < 1e-5 < 1e-2 < found["layers"][2] and found["log_probs"] > 1e-2


@pytest.mark.parametrize(
    "name",
    ["position.table", "layers.0.attention.persistent_values", "layers.0.attention.content_bias", "layers.1.attention_norm", "head.0.bias"],
)
def test_a_small_fault_anywhere_shows(name: str, source: Path, compact: Path) -> None:
    if name == "position.table":  # a row in reach
        good = checkpoint.read(compact)
        weights = {**good.weights, name: np.roll(good.weights[name], 1, 0)}
        checkpoint.save(Checkpoint(good.spec, weights, good.provenance, good.tokenizer), compact, force=True)
    else:
        saved_with(compact, name, 0.05)
    assert headcount("verify", compact, "--against", source).status == 1


def test_another_source_is_not_comparable(compact: Path, tmp_path: Path) -> None:
    other = AihaSource(num_layers=3, hidden_dim=24, vocab=29).write(tmp_path / "other")
    done = headcount("verify", compact, "--against", other)
    assert (done.status, done.out) == (1, "")
    assert all(name in done.err for name in ("vocab: expected 29", "hidden: expected 24", "layers: expected 3"))


def test_rows_that_are_too_short(compact: Path) -> None:
    with engine.load(compact) as model, pytest.raises(InputError, match=r"ids\[1\]: expected at least two tokens, found 1"):
        compare(model, model, [np.array([1, 2]), np.array([1])])


def test_rows_of_different_lengths_and_longer_than_a_step(compact: Path) -> None:
    rng = np.random.default_rng(0)
    with engine.load(compact) as model:
        found = compare(model, model, [rng.integers(0, 23, length) for length in (2, 300, 63)])
    assert found == Comparison((0.0, 0.0, 0.0), 0.0, 0.0, 365)


def test_samples_pass_every_ring_and_repeat(compact: Path) -> None:
    with engine.load(compact) as model:
        ids = sample_ids(model)
        assert ids.shape == (2, 2 * 7 + 3) and ids.min() >= 0 and ids.max() < model.spec.vocab
        np.testing.assert_array_equal(ids, sample_ids(model))


def test_nan_is_never_within(compact: Path) -> None:
    class Broken:
        """A model whose answers are NaN."""

        def __init__(self, model: engine.Model) -> None:
            self.spec = model.spec
            self.trace = lambda row: [([np.full((len(row), 12), np.nan, np.float32)] * 3, np.full((len(row), 23), np.nan, np.float32))]

    with engine.load(compact) as model:
        found = compare(Broken(model), model, sample_ids(model))  # type: ignore[arg-type]
    assert found.log_probs == float("inf") and not found.within(1e30) and found.layers == (float("inf"),) * 3


def test_verify_against_an_engine_directory(compact: Path, source: Path, tmp_path: Path) -> None:
    """The dense model as a directory, pruned by the same heads, is a source like any other."""
    dense = AihaSource(num_layers=2).write(tmp_path / "dense")
    engine.convert(dense, tmp_path / "whole")
    (tmp_path / "heads.json").write_text(json.dumps([[1], [0, 2]]))
    engine.convert(tmp_path / "whole", tmp_path / "pruned", heads=tmp_path / "heads.json")
    shutil.rmtree(tmp_path / "dense")
    done = headcount("verify", tmp_path / "pruned", "--against", tmp_path / "whole", "--heads", tmp_path / "heads.json")
    assert (done.status, done.err) == (0, "")
