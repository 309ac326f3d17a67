"""Models of one parent hold their common weights once: in packed bytes, in the answers, and after some of them are closed."""

from __future__ import annotations

import gc
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import engine
from engine.checkpoint import read
from engine_kernels import native

PARENT = Path(__file__).parents[2] / "examples" / "shakespeare" / "dense.ckpt"
KEPT = [[0, 3, 5], [1, 2, 6, 7], [], [4]]  # of 8 heads in each of 4 layers


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shared") / "dense"
    engine.convert(PARENT, out)
    return out


@pytest.fixture
def stored_before() -> Iterator[int]:
    """Bytes other tests' models hold; afterwards no more are held than before."""
    gc.collect()
    before = native.stored_bytes()
    yield before
    gc.collect()
    assert native.stored_bytes() == before


def weight_bytes(model: engine.Model) -> tuple[int, int]:
    runner = model.explain().runner
    return runner["weight_bytes"], runner["weight_bytes_shared"]


@pytest.mark.parametrize(("options", "size"), [({"dtype": "float32"}, 4), ({"dtype": "bfloat16"}, 2), ({"quantization": "int8"}, 1)])
def test_a_level_beside_its_parent_costs_its_output_projections(
    directory: Path, stored_before: int, options: dict[str, str], size: int
) -> None:
    with engine.load(directory, backend="cpu", **options) as dense:
        parent, shared = weight_bytes(dense)
        assert native.stored_bytes() - stored_before == parent and shared == 0
        with engine.load(directory, backend="cpu", heads=KEPT, **options) as level:
            held, shared = weight_bytes(level)
            scales = 128 * 4 if size == 1 else 0  # one for each row
            outputs = sum(128 * 16 * len(kept) * size + scales for kept in KEPT if kept)
            assert held - shared == outputs == native.stored_bytes() - stored_before - parent
            assert outputs < 0.06 * parent and held < parent
            assert weight_bytes(dense)[1] == shared
            said = str(level.explain())
            assert f"weight_bytes: {held}" in said and f"weight_bytes_shared: {shared}" in said
        assert native.stored_bytes() - stored_before == parent and weight_bytes(dense) == (parent, 0)


def test_the_same_model_twice_costs_nothing(directory: Path, stored_before: int) -> None:
    with engine.load(directory, backend="cpu") as first, engine.load(directory, backend="cpu") as second:
        assert weight_bytes(first) == weight_bytes(second) and weight_bytes(first)[0] == weight_bytes(first)[1]
        assert native.stored_bytes() - stored_before == weight_bytes(first)[0]


def test_another_dtype_shares_nothing(directory: Path, stored_before: int) -> None:
    with engine.load(directory, backend="cpu") as first, engine.load(directory, backend="cpu", dtype="bfloat16") as second:
        assert weight_bytes(first)[1] == weight_bytes(second)[1] == 0


def test_what_is_shared_outlives_the_model_that_brought_it(directory: Path, stored_before: int) -> None:
    ids = np.random.default_rng(0).integers(0, 60, (2, 150))
    with engine.load(directory, backend="cpu", heads=KEPT) as alone:
        expected = alone.log_probs(ids)
    dense = engine.load(directory, backend="cpu")
    level = engine.load(directory, backend="cpu", heads=KEPT)
    dense.close()
    np.testing.assert_array_equal(level.log_probs(ids), expected)
    assert weight_bytes(level)[1] == 0
    level.close()


def test_models_come_and_go_on_several_threads(directory: Path, stored_before: int) -> None:
    ids = np.random.default_rng(1).integers(0, 60, (1, 40))
    with engine.load(directory, backend="cpu", heads=KEPT) as alone:
        expected = alone.log_probs(ids)
    wrong: list[object] = []

    def work(heads: list[list[int]] | None) -> None:
        for _ in range(4):
            with engine.load(directory, backend="cpu", threads=1, heads=heads) as model:
                if heads is not None and not np.array_equal(model.log_probs(ids), expected):
                    wrong.append(heads)

    threads = [threading.Thread(target=work, args=(heads,)) for heads in (None, KEPT, KEPT)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="what a process has of a file in memory is read from /proc")
@pytest.mark.parametrize("heads", [None, KEPT])
def test_the_file_takes_no_memory_once_it_is_packed(directory: Path, heads: list[list[int]] | None) -> None:
    def resident() -> int:
        """KiB of the mapped weights, of all mappings of the file."""
        text = Path("/proc/self/smaps").read_text()
        blocks = re.findall(rf"{re.escape(str(directory))}/model\.safetensors\n.*?^Rss: +(\d+)", text, re.DOTALL | re.MULTILINE)
        assert blocks
        return sum(map(int, blocks))

    with engine.load(directory, backend="cpu", heads=heads) as model:
        assert resident() == 0
        assert model._checkpoint is not None
        np.testing.assert_array_equal(model._checkpoint.weights["embedding.0"], read(directory).weights["embedding.0"])
        assert resident() > 0


def test_a_pruned_model_saves_what_it_was_loaded_with(directory: Path, tmp_path: Path) -> None:
    with engine.load(directory, backend="cpu", heads=KEPT) as level:
        level.save(tmp_path / "level")
        expected = level.log_probs([[1, 2, 3]])
    with engine.load(tmp_path / "level", backend="cpu", check=True) as again:
        np.testing.assert_array_equal(again.log_probs([[1, 2, 3]]), expected)
