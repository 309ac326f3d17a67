"""heads= in every form it has, and everything that can be wrong with it."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.errors import EngineError, InputError
from engine.formats.heads import HeadChoice, read_heads

ALL = ((0, 1, 2), (0, 1, 2), (0, 1, 2))


def choices(rng: np.random.Generator, layers: int, heads: int) -> HeadChoice:
    """Any choice: few heads or many, none in some layers, with scales or without."""
    kept = tuple(tuple(np.flatnonzero(rng.random(heads) < rng.random()).tolist()) for _ in range(layers))
    scales = tuple(tuple(rng.choice([0.5, 1.0, -2.0, 0.25], len(row)).tolist()) for row in kept)
    return HeadChoice(kept, scales if rng.random() < 0.6 else None)


def as_mask(choice: HeadChoice, heads: int) -> np.ndarray:
    """[layers, heads]: the scale of each head kept, 0 elsewhere."""
    mask = np.zeros((len(choice.kept), heads))
    for layer, row in enumerate(choice.kept):
        mask[layer, list(row)] = 1.0 if choice.scales is None else choice.scales[layer]
    return mask


@pytest.mark.parametrize("seed", range(40))
def test_an_intersection_is_the_product_of_two_masks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers, heads = int(rng.integers(0, 5)), int(rng.integers(1, 9))
    a, b, c = (choices(rng, layers, heads) for _ in range(3))
    found = a.intersect(b)
    assert np.array_equal(as_mask(found, heads), as_mask(a, heads) * as_mask(b, heads))
    assert found.kept == tuple(tuple(head for head in ours if head in theirs) for ours, theirs in zip(a.kept, b.kept, strict=True))
    assert (found.scales is None) == (a.scales is None and b.scales is None)
    assert np.array_equal(as_mask(a.intersect(b).intersect(c), heads), as_mask(a.intersect(b.intersect(c)), heads))
    every = HeadChoice((tuple(range(heads)),) * layers, None)
    assert a.intersect(every) == a == every.intersect(a)
    assert a.intersect(a).kept == a.kept and a.intersect(b).kept == b.intersect(a).kept


def test_choices_of_other_layers_do_not_intersect() -> None:
    with pytest.raises(ValueError):
        HeadChoice(((0,), (1,)), None).intersect(HeadChoice(((0,),), None))


def json_file(tmp_path: Path, value: Any) -> Path:
    path = tmp_path / "heads.json"
    path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    return path


@pytest.mark.parametrize("pruned", [{}, {0: []}, {"0": [0], 2: [2, 1]}, {1: [0, 1, 2]}, {np.int64(1): np.array([1])}])
def test_an_object_names_what_goes(pruned: dict[Any, Any]) -> None:
    gone = {int(layer): set(int(h) for h in heads) for layer, heads in pruned.items()}
    expected = tuple(tuple(head for head in range(3) if head not in gone.get(layer, ())) for layer in range(3))
    assert read_heads(pruned, 3, 3) == HeadChoice(expected, None)


def test_a_list_names_what_stays(tmp_path: Path) -> None:
    expected = HeadChoice(((0, 2), (), (1,)), None)
    for given in ([[2, 0], [], [1]], ((0, 2), range(0), np.array([1]))):
        assert read_heads(given, 3, 3) == expected
    assert read_heads(json_file(tmp_path, [[2, 0], [], [1]]), 3, 3) == expected
    assert read_heads(str(json_file(tmp_path, {"1": [0, 1, 2], "0": [1], "2": [0, 2]})), 3, 3) == expected


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int64, np.uint8, np.bool_])
def test_an_array_keeps_where_it_is_not_zero(tmp_path: Path, dtype: Any) -> None:
    mask = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1]]).astype(dtype)
    expected = HeadChoice(((0, 2), (), (0, 1, 2)), None)
    assert read_heads(mask, 3, 3) == expected
    np.save(tmp_path / "mask.npy", mask)
    assert read_heads(tmp_path / "mask.npy", 3, 3) == expected


def test_the_values_of_an_array_are_scales(tmp_path: Path) -> None:
    values = np.array([[0.5, 0.0, -2.0], [1.0, -0.0, 1.0]], np.float32)
    expected = HeadChoice(((0, 2), (0, 2)), ((0.5, -2.0), (1.0, 1.0)))
    assert read_heads(values, 2, 3) == expected
    torch = pytest.importorskip("torch")
    assert read_heads(torch.tensor(values, requires_grad=True), 2, 3) == expected
    assert read_heads(torch.tensor(values, dtype=torch.bfloat16), 2, 3) == expected
    torch.save(torch.tensor(values), tmp_path / "mask.pt")
    assert read_heads(tmp_path / "mask.pt", 2, 3) == expected


def test_layers_of_different_width() -> None:
    assert read_heads({2: [3]}, 3, (1, 0, 4)) == HeadChoice(((0,), (), (0, 1, 2)), None)
    assert read_heads(np.array([[1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 1]]), 3, (1, 0, 4)).kept == ((0,), (), (1, 2, 3))
    with pytest.raises(InputError, match=r"heads: layer 1: expected zeros behind its 0 heads"):
        read_heads(np.ones((3, 4)), 3, (4, 0, 4))


def test_the_forms_agree() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        mask = rng.integers(0, 2, (3, 3))
        kept = [np.flatnonzero(row).tolist() for row in mask]
        pruned = {str(layer): np.flatnonzero(row == 0).tolist() for layer, row in enumerate(mask)}
        assert read_heads(mask, 3, 3) == read_heads(kept, 3, 3) == read_heads(pruned, 3, 3)


@pytest.mark.parametrize(
    ("heads", "wheres"),
    [
        (
            {3: [0], -1: [], "x": [], "01": [], "٣": [], True: []},
            [f"heads: layer {key}" for key in ("3", "-1", "'x'", "'01'", "'٣'", "True")],
        ),
        ({0: [3, -1, 1, 1, 1.0, True, "0"], "1": 5}, ["heads: layer 0"] * 6 + ["heads: layer 1"]),
        ({0: [0], "0": [1]}, ["heads: layer 0"]),
        ([[0], [0]], ["heads"]),
        ([[0, 0], [3], "12"], ["heads: layer 0", "heads: layer 1", "heads: layer 2"]),
        ([[0], [1], 2], ["heads: layer 2"]),
        (np.ones((2, 3)), ["heads"]),
        (np.ones((3, 3, 1)), ["heads"]),
        (np.ones((3, 3), np.complex64), ["heads"]),
        (np.full((3, 3), None), ["heads"]),
        (np.array([["a"] * 3] * 3), ["heads"]),
        (
            np.array([[1, np.nan, 0], [np.inf, 1, 0], [0, 0, 1e300]]),
            ["heads: layer 0, head 1", "heads: layer 1, head 0", "heads: layer 2, head 2"],
        ),
        (7, ["heads"]),
        (b"heads", ["heads"]),
    ],
)
def test_all_problems_together(heads: Any, wheres: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        read_heads(heads, 3, 3)
    assert [problem.where for problem in caught.value.problems] == wheres  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b'{"0": [1], "0": [2]}',
        b"\xff",
        b"[NaN]",
        b"3",
        b'"text"',
        b"null",
        b"[" * 100_000,
        b'{"0": [1e400]}',
        b"[[" + b"9" * 5000 + b"]]",
    ],
)
def test_bad_json_files(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(InputError):
        read_heads(json_file(tmp_path, text), 3, 3)


def npy(header: bytes, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    return b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header + data


BAD_NPY = {
    "empty": b"",
    "magic": b"\x93NUMPY",
    "text": b"hello",
    "version": npy(b"{}", version=b"\x09\x00"),
    "header": npy(b"{'descr': '<f8', 'fortran_order': False, "),
    "nested": npy(b"(" * 9000),
    "long": npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (3, 3)}" + b" " * 60000),
    "huge": npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776, 1048576)}\n", b"\0" * 72),
    "overflow": npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (4611686018427387904, 8)}\n", b"\0" * 72),
    "negative": npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (-3, -3)}\n", b"\0" * 72),
    "object": npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (3, 3)}\n", b"\0" * 72),
    "short": npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (3, 3)}\n", b"\0" * 71),
    "none": npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (0, 3)}\n"),
    "pickle": b"\x80\x04cos\nsystem\n.",
    "archive": b"PK\x03\x04 not really",
}


@pytest.mark.parametrize("case", BAD_NPY)
def test_bad_npy_files(tmp_path: Path, case: str) -> None:
    (tmp_path / "mask.npy").write_bytes(BAD_NPY[case])
    with pytest.raises(InputError):
        read_heads(tmp_path / "mask.npy", 3, 3)


def test_mutated_npy_files_are_read_or_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.ones((3, 3)))
    original = buffer.getvalue()
    rng = np.random.default_rng(1)
    read = 0
    for _ in range(600):
        data = bytearray(original)
        data[int(rng.integers(len(data)))] = int(rng.integers(256))
        (tmp_path / "mask.npy").write_bytes(data[: rng.integers(len(data))] if rng.random() < 0.2 else data)
        try:
            read_heads(tmp_path / "mask.npy", 3, 3)
            read += 1
        except EngineError:
            pass
    assert 100 < read < 500, read


def test_an_archive_of_arrays_is_not_a_mask(tmp_path: Path) -> None:
    np.savez(tmp_path / "mask.npz", a=np.ones((3, 3)))
    (tmp_path / "mask.npz").rename(tmp_path / "mask.npy")
    with pytest.raises(InputError, match="one array"):
        read_heads(tmp_path / "mask.npy", 3, 3)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for name in ("none.json", "none.npy", "none.pt", "none.txt", "nul\0.json", "none"):
        with pytest.raises(EngineError):
            read_heads(tmp_path / name, 3, 3)
    (tmp_path / "dir.npy").mkdir()
    with pytest.raises(InputError, match="a directory"):
        read_heads(tmp_path / "dir.npy", 3, 3)


def test_nothing_said_keeps_everything() -> None:
    assert read_heads({}, 3, 3) == HeadChoice(ALL, None)


def test_masks_as_textpruner_and_dsp_save_them(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    mask = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    expected = HeadChoice(((0, 2), (1, 2)), None)
    for saved in (mask.clone().requires_grad_(), (mask, None), (mask, torch.ones(2, 7)), [mask.bool(), torch.ones(2, 7, dtype=torch.bool)]):
        torch.save(saved, tmp_path / "mask.pt")
        assert read_heads(tmp_path / "mask.pt", 2, 3) == expected


def test_a_feed_forward_mask_is_not_left_out(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    for saved, message in (
        ((torch.ones(2, 3), torch.tensor([[1.0, 0.0], [0.0, 1.0]])), "feed-forward mask: expected none, or ones: .* found 2 zeros"),
        ((torch.ones(2, 3), "text"), "feed-forward mask: expected a tensor, found str"),
        ((None, torch.ones(2, 3)), "the file: expected a tensor, found tuple"),
        ((torch.ones(2, 3), torch.ones(2, 3), None), "the file: expected a tensor, found tuple"),
    ):
        torch.save(saved, tmp_path / "mask.pt")
        with pytest.raises(EngineError, match=message):
            read_heads(tmp_path / "mask.pt", 2, 3)
