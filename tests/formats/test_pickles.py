"""Source files: what is read, and that whatever the bytes are, the answer is tensors or one ConversionError."""

from __future__ import annotations

import builtins
import collections
import os
import pickle
import random
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from engine.checkpoint.tensor_file import write_tensors
from engine.errors import ConversionError
from engine.formats.pickles import load_array, load_tensors
from tests.support.sources import AihaSource

torch = pytest.importorskip("torch")
WEIGHT = torch.arange(6, dtype=torch.float32).reshape(2, 3)


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def refused(path: Path) -> str:
    with pytest.raises(ConversionError) as caught:
        load_tensors(path)
    return str(caught.value)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("key", ["network", "model", "state_dict", None])
def test_state_dict_is_found_wherever_a_trainer_puts_it(key: str | None, legacy: bool, tmp_path: Path) -> None:
    state = collections.OrderedDict({"a.weight": WEIGHT, "b": WEIGHT.T})
    content: Any = state if key is None else {"epoch": 3, "optimizer": {"state": {0: {"m": WEIGHT}}}, key: state, "rate": 0.1}
    loaded = load_tensors(saved(tmp_path / "x.pt", content, _use_new_zipfile_serialization=not legacy))
    assert list(loaded.tensors) == ["a.weight", "b"]
    np.testing.assert_array_equal(loaded.tensors["a.weight"], WEIGHT.numpy())
    np.testing.assert_array_equal(loaded.tensors["b"], WEIGHT.numpy().T)
    assert loaded.extras == ({} if key is None else {"epoch": 3})


def test_shared_storages_and_parameters(tmp_path: Path) -> None:
    big = torch.arange(100, dtype=torch.float32)
    content = {"row": big[10:20], "again": big[10:20], "parameter": torch.nn.Parameter(WEIGHT), "step": big[::7]}
    tensors = load_tensors(saved(tmp_path / "x.pt", content)).tensors
    np.testing.assert_array_equal(tensors["row"], np.arange(10, 20))
    np.testing.assert_array_equal(tensors["step"], np.arange(0, 100, 7))
    np.testing.assert_array_equal(tensors["parameter"], WEIGHT.numpy())
    assert tensors["row"].ctypes.data == tensors["again"].ctypes.data


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16", "int64", "bool"])
def test_dtypes(dtype: str, tmp_path: Path) -> None:
    value = WEIGHT.to(getattr(torch, dtype))
    array = load_tensors(saved(tmp_path / "x.pt", {"a": value})).tensors["a"]
    assert array.dtype == (ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype))
    np.testing.assert_array_equal(array.astype(np.float64), value.double().numpy())


def test_safetensors_sources_need_no_torch(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    write_tensors(tmp_path / "x.safetensors", {"module.a": array, "b": array.astype(ml_dtypes.bfloat16)})
    loaded = load_tensors(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(loaded.tensors["a"], array)
    assert loaded.tensors["b"].dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize("data", [b"", b"\x00", b"\xff" * 4000, b"\x10\x00\x00\x00\x00\x00\x00\x00{}"])
def test_damaged_safetensors(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(data)
    assert "x.safetensors" in refused(tmp_path / "x.safetensors")


# --- names


@pytest.mark.parametrize(
    ("given", "short"),
    [
        ("module.a", "a"),
        ("network.a", "a"),
        ("module.network.module.module.a", "a"),
        ("a.module.b", "a.module.b"),
        ("modules.a", "modules.a"),
    ],
)
def test_prefixes_are_stripped_in_any_nesting(given: str, short: str, tmp_path: Path) -> None:
    assert list(load_tensors(saved(tmp_path / "x.pt", {given: WEIGHT})).tensors) == [short]


def test_two_names_that_become_one(tmp_path: Path) -> None:
    text = refused(saved(tmp_path / "x.pt", {"module.a": WEIGHT, "network.a": WEIGHT, "b": WEIGHT}))
    assert "network.a: expected one tensor named a, found module.a as well" in text


def test_names_that_are_not_text(tmp_path: Path) -> None:
    assert "the name of one tensor" in refused(saved(tmp_path / "x.pt", {7: WEIGHT, "a": WEIGHT}))
    name = next(iter(load_tensors(saved(tmp_path / "y.pt", {"half \ud800": WEIGHT})).tensors))
    assert name.encode() == b"half \\ud800"


# --- what is refused


def test_file_that_is_not_there(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "x.pt")
    assert "directory" in refused(tmp_path)
    assert "source: expected" in refused(Path("a\0b.pt"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.pt")
    assert "directory or device" in refused(tmp_path / "x.pt")


def test_empty_truncated_and_foreign_files(tmp_path: Path) -> None:
    path = AihaSource().write(tmp_path)
    whole = path.read_bytes()
    (tmp_path / "empty.pt").write_bytes(b"")
    assert "an empty file" in refused(tmp_path / "empty.pt")
    for size in (1, 3, 4, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.pt").write_bytes(whole[:size])
        assert "a complete PyTorch checkpoint" in refused(tmp_path / "cut.pt")
    for data in (b"PK\x03\x04", b"hello\n", b"\x80\x04.", b"\x80\x02}q\x00.", bytes(1000)):
        (tmp_path / "other.pt").write_bytes(data)
        assert "other.pt" in refused(tmp_path / "other.pt")


class _Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return builtins.exec, ("import pathlib; pathlib.Path('it-ran').touch()",)


@pytest.mark.parametrize("kind", ["object in zip", "object in legacy file", "plain pickle", "whole module"])
def test_pickle_that_needs_code_is_not_run(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.pt"
    if kind == "plain pickle":
        path.write_bytes(pickle.dumps({"model": _Runs()}, protocol=2))
    elif kind == "whole module":
        torch.save(torch.nn.Linear(2, 2), path)
    else:
        torch.save({"a": WEIGHT, "b": _Runs()}, path, _use_new_zipfile_serialization=kind == "object in zip")
    text = refused(path)
    assert not (tmp_path / "it-ran").exists()
    assert "torch.save(model.state_dict()" in text or kind == "plain pickle"


@pytest.mark.parametrize(
    "content", [WEIGHT, [WEIGHT], {}, {"a": 3}, {"model": {"x": 1}}, {"network": [WEIGHT]}, 7, None, {"deep": {"model": {"a": WEIGHT}}}]
)
def test_files_without_a_state_dict(content: Any, tmp_path: Path) -> None:
    assert "torch.save(model.state_dict()" in refused(saved(tmp_path / "x.pt", content))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_entries_that_are_no_plain_tensors_are_reported_together(tmp_path: Path) -> None:
    content = {
        "good": WEIGHT,
        "number": 3,
        "sparse": WEIGHT.to_sparse(),
        "quantized": torch.quantize_per_tensor(WEIGHT, 0.1, 0, torch.qint8),
        "small float": WEIGHT.to(torch.float8_e4m3fn),
    }
    text = refused(saved(tmp_path / "x.pt", content))
    assert [name for name in content if f"{name}: expected" not in text] == ["good"]


def test_tensor_that_claims_more_than_the_file_holds(tmp_path: Path) -> None:
    """Strides of zero say any size in a few bytes; nothing may be allocated for them."""
    text = refused(saved(tmp_path / "x.pt", {"a": torch.zeros(1).expand(1 << 20, 1 << 20)}))
    assert "a: expected at most" in text and "[1048576, 1048576]" in text


def test_without_torch_the_error_says_what_to_install(tmp_path: Path) -> None:
    path = AihaSource().write(tmp_path)
    code = "import sys; sys.modules['torch'] = None\nfrom pathlib import Path\nfrom engine.formats.pickles import load_tensors\n"
    code += "from engine.errors import ConversionError\ntry: load_tensors(Path(sys.argv[1]))\nexcept ConversionError as e: print(e)"
    found = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True
    )
    assert "pip install 'headcount[torch]'" in found.stdout


# --- one array


def test_load_array(tmp_path: Path) -> None:
    np.testing.assert_array_equal(load_array(saved(tmp_path / "m.pt", WEIGHT)), WEIGHT.numpy())
    for content in ({"a": WEIGHT}, [1, 2], "text", WEIGHT.to_sparse()):
        with pytest.raises(ConversionError, match="save one tensor"):
            load_array(saved(tmp_path / "m.pt", content))
    with pytest.raises(ConversionError, match="no such file"):
        load_array(tmp_path / "none.pt")


# --- mutation


def _mutants(whole: bytes, seed: int, count: int) -> list[bytes]:
    """Flipped bytes, mostly in the pickle and the archive's directory; cut and doubled pieces."""
    rng = random.Random(seed)
    result = []
    for index in range(count):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 8))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if index % 10 == 0:
            start = rng.randrange(len(data))
            data[start : start + rng.randrange(64)] = bytes(rng.randrange(64))
        result.append(bytes(data))
    return result


@pytest.mark.parametrize("legacy", [False, True])
def test_mutated_pickles_give_tensors_or_one_clear_error(legacy: bool, tmp_path: Path) -> None:
    state = {name: torch.from_numpy(array) for name, array in AihaSource(num_layers=1, vocab=3, feedforward_dim=1).state().items()}
    path = saved(tmp_path / "x.pt", {"epoch": 3, "network": state}, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    if not legacy:  # a third of the bytes that steer: the pickle itself
        with zipfile.ZipFile(path) as archive:
            steering = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
        start = whole.index(steering)
    else:
        start, steering = 0, whole[: len(whole) // 3]
    outcomes: collections.Counter[str] = collections.Counter()
    mutants = _mutants(whole, 1, 150) + [whole[:start] + m + whole[start + len(steering) :] for m in _mutants(steering, 2, 250)]
    for mutant in mutants:
        path.write_bytes(mutant)
        try:
            loaded = load_tensors(path)
        except ConversionError as error:
            str(error).encode()
            outcomes["refused"] += 1
        else:
            assert sum(array.nbytes for array in loaded.tensors.values()) <= len(loaded.tensors) * len(mutant)
            for array in loaded.tensors.values():
                array.sum()  # every byte can be read
            outcomes["loaded"] += 1
    print(dict(outcomes))
    assert outcomes["refused"] > 20 and outcomes["loaded"] > 20
