"""Masks and rankings as other people's programs leave them → heads to keep, or scores; a literal table of formats.

Michel et al. (arXiv 1905.10650), Voita et al. (1905.09418), differentiable subset pruning (2108.04657), Shapley values (2210.05709).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import InputError, Problem
from engine.formats.heads import HeadChoice, read_heads
from engine.prune.files import read_object
from engine.spec import ModelSpec
from engine.spec.strict_json import parse_json, read_bytes

Counts = tuple[int, ...]  # heads of each layer of the source
DESCRIPTOR = re.compile(r"(?:([EAD]):)?([1-9][0-9]{0,5}):([1-9][0-9]{0,5}(?:,[1-9][0-9]{0,5})*)")
ARRAYS = "Contribution Arrays"
VOITA_SELF = "enc-self"


def read_mask(path: Path, spec: ModelSpec, format: str = "auto") -> HeadChoice:
    """Which heads a file keeps, by the source's numbers; raises InputError for a file of another form or for another model.

    heads: what `heads=` takes (masks of bertology, TextPruner and DSP's mask<K>.pt among them). michel: `layer:head,head …`, both from 1,
    the heads that go. voita: JSON {"enc-self": rows of 1 and 0}. voita-logits: log α [layers, heads], scales are clip(1.2 σ − 0.1, 0, 1).
    shapley: the tracker's text; heads whose mean contribution is negative go. auto tells them apart by name and content.
    """
    name = _format_of(path) if format == "auto" else format
    if name not in MASKS:
        raise InputError(Problem("mask format", "auto, " + ", ".join(MASKS), repr(format)))
    return MASKS[name](path, tuple(layer.attention.source_heads for layer in spec.layers))


def read_scores(path: Path, spec: ModelSpec) -> np.ndarray:
    """Scores [layers, source heads] of a folder written by `rank`, its ranking.json, a .npy (head_importance.npy) or a Shapley tracker."""
    if path.is_dir():
        path = path / "scores.npy"
    counts = tuple(layer.attention.source_heads for layer in spec.layers)
    if path.suffix == ".txt":
        return _contributions(path, counts)
    if path.suffix == ".json":
        rows = read_object(path).get("scores")
        try:
            scores = np.array(rows, np.float64)  # null becomes NaN
        except (TypeError, ValueError):
            scores = np.zeros(0)
    else:
        scores = _array(path)
    shape = (len(counts), max(counts))
    if scores.shape != shape:
        raise InputError(Problem(str(path), f"scores of {shape[0]} layers × {shape[1]} heads", str(list(scores.shape))))
    return scores


def _heads(path: Path, counts: Counts) -> HeadChoice:
    return read_heads(path, len(counts), counts)


def _michel(path: Path, counts: Counts) -> HeadChoice:
    gone: dict[int, list[int]] = {}
    problems = []
    for descriptor in _text(path).split():
        match = DESCRIPTOR.fullmatch(descriptor)
        if match is None or match[1] in ("A", "D"):
            problems.append(Problem(str(path), "layer:head,head … of an encoder, counted from 1", repr(descriptor[:40])))
            continue
        gone.setdefault(int(match[2]) - 1, []).extend(int(head) - 1 for head in match[3].split(","))
    if problems:
        raise InputError(problems[:20])
    return read_heads({layer: sorted(set(heads)) for layer, heads in gone.items()}, len(counts), counts)


def _voita(path: Path, counts: Counts) -> HeadChoice:
    value = parse_json(read_bytes(path, InputError), str(path), InputError)
    if isinstance(value, dict) and "alive_heads" in value:
        value = value["alive_heads"]
    rows = value.get(VOITA_SELF) if isinstance(value, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, list) and set(map(repr, row)) <= {"0", "1", "0.0", "1.0"} for row in rows):
        raise InputError(Problem(str(path), f'{{"{VOITA_SELF}": a row of 1 and 0 for each layer}}', json.dumps(value)[:60]))
    return read_heads([[head for head, alive in enumerate(row) if alive] for row in _sized(path, rows, counts)], len(counts), counts)


def _voita_logits(path: Path, counts: Counts) -> HeadChoice:
    logits = _array(path)
    with np.errstate(over="ignore"):
        gates = np.clip(1.2 / (1.0 + np.exp(-logits)) - 0.1, 0.0, 1.0)  # arXiv 1712.01312 eq. 13 with limits −0.1 and 1.1
    return read_heads(gates, len(counts), counts)


def _shapley(path: Path, counts: Counts) -> HeadChoice:
    values = _contributions(path, counts)
    return read_heads(
        [[head for head in range(count) if not values[layer, head] < 0] for layer, count in enumerate(counts)], len(counts), counts
    )


MASKS: dict[str, Callable[[Path, Counts], HeadChoice]] = {
    "heads": _heads,
    "michel": _michel,
    "voita": _voita,
    "voita-logits": _voita_logits,
    "shapley": _shapley,
}


def _contributions(path: Path, counts: Counts) -> np.ndarray:
    """[layers, heads]: the mean of what each head added to the metric; one never sampled adds 0. The last run of a file counts."""
    _, found, last = _text(path).rpartition(ARRAYS)
    value = parse_json(last.strip().encode(), str(path), InputError) if found else None
    if not isinstance(value, dict):
        shown = last[:40] if found else "no such text"
        raise InputError(Problem(str(path), f"{ARRAYS} and an object of lists behind it", shown))
    width = max(counts)
    means, problems = np.zeros((len(counts), width)), []
    for key, numbers in value.items():
        number = int(key) if key.isascii() and key.isdecimal() and len(key) < 10 else -1
        if not 0 <= number < means.size or not _finite_list(numbers):
            expected = f"numbers for a head from 0 to {means.size - 1}"
            problems.append(Problem(f"{path}: head {key!r}", expected, json.dumps(numbers)[:40]))
        elif numbers:
            means[number // width, number % width] = float(np.mean(numbers))
    if problems:
        raise InputError(problems[:20])
    return means


def _format_of(path: Path) -> str:
    if path.suffix == ".json":
        value: Any = parse_json(read_bytes(path, InputError), str(path), InputError)
        return "voita" if isinstance(value, dict) and ("alive_heads" in value or VOITA_SELF in value) else "heads"
    if path.suffix in (".npy", ".pt", ".pth"):
        return "heads"
    return "shapley" if ARRAYS in _text(path) else "michel"


def _array(path: Path) -> np.ndarray:
    """The numbers of a .npy or .pt file, as they are."""
    if path.suffix in (".pt", ".pth"):
        from engine.formats.pickles import load_array  # needs torch

        array = load_array(path)
    else:
        read_bytes(path, InputError)  # a regular file of a sane size
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: a header cannot claim more than the file holds
        except Exception as error:  # NumPy evaluates the header's text and names no closed list of what that may raise
            raise InputError(Problem(str(path), "a whole .npy array of numbers", str(error)[:120])) from None
    if not isinstance(array, np.ndarray):
        raise InputError(Problem(str(path), "one array", "an archive of several"))
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise InputError(Problem(str(path), "an array of numbers", array.dtype.name))
    return np.asarray(array, np.float64)


def _text(path: Path) -> str:
    try:
        return read_bytes(path, InputError).decode()
    except UnicodeDecodeError as error:
        raise InputError(Problem(str(path), "text in UTF-8", f"a damaged byte at {error.start}")) from None


def _sized(path: Path, rows: Sequence[Sequence[Any]], counts: Counts) -> Sequence[Sequence[Any]]:
    if tuple(map(len, rows)) != counts:
        raise InputError(Problem(str(path), f"rows of {list(counts)} heads", str([len(row) for row in rows])[:60]))
    return rows


def _finite_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(n, (int, float)) and not isinstance(n, bool) and np.isfinite(n) for n in value)
