"""What a user says about heads, in any of its forms → the heads to keep per layer and their scales."""

from __future__ import annotations

import operator
import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.checkpoint import Checkpoint
from engine.checkpoint.surgery import mask, prune
from engine.errors import InputError, Problem
from engine.spec import Absolute, ModelSpec
from engine.spec.strict_json import parse_json, read_bytes

FORMS = "a JSON object {layer: [pruned heads]}, a list of kept heads for each layer, or an array [layers, heads]"


@dataclass(frozen=True)
class HeadChoice:
    """Per layer the kept heads, ascending, by the source's numbers; scales: a factor for each of them, None when all are 1."""

    kept: tuple[tuple[int, ...], ...]
    scales: tuple[tuple[float, ...], ...] | None

    def intersect(self, other: HeadChoice) -> HeadChoice:
        """The heads that both keep, in the order of this one, with the product of their scales."""
        layers = [(ours, dict(theirs)) for ours, theirs in zip(self._pairs(), other._pairs(), strict=True)]
        both = [[(head, scale * factor[head]) for head, scale in ours if head in factor] for ours, factor in layers]
        kept = tuple(tuple(head for head, _ in row) for row in both)
        if self.scales is None and other.scales is None:
            return HeadChoice(kept, None)
        return HeadChoice(kept, tuple(tuple(scale for _, scale in row) for row in both))

    def _pairs(self) -> list[list[tuple[int, float]]]:
        """Per layer (head, scale)."""
        scales = self.scales or tuple((1.0,) * len(heads) for heads in self.kept)
        return [list(zip(heads, row, strict=True)) for heads, row in zip(self.kept, scales, strict=True)]


def read_heads(heads: Any, layers: int, source_heads: Sequence[int] | int) -> HeadChoice:
    """Read a choice of heads for `layers` layers that have `source_heads` heads, each or one number per layer.

    heads: a Python value or the path of a .json, .npy or .pt file. {layer: [PRUNED]} names what goes, layers not named keep all; a list of
    lists names what is KEPT in each layer; an array [layers, heads] keeps where it is not zero, and its values are the heads' scales. A .pt
    file holds one such tensor (bertology, DSP's mask<K>.pt), or TextPruner's pair of a mask of heads and one of feed-forwards.
    Raises InputError with everything wrong in it, ConversionError for a .pt file that cannot be read.
    """
    counts = (source_heads,) * layers if isinstance(source_heads, int) else tuple(source_heads)
    source = None
    if isinstance(heads, (str, os.PathLike)):
        path = Path(heads)
        heads, source = _read_file(path), str(path)
    problems: list[Problem] = []
    choice = _choice(heads, counts, problems)
    if problems:
        raise InputError(problems, source=source, hint=f"heads takes {FORMS}")
    return choice


def cut_heads(checkpoint: Checkpoint, own: HeadChoice, heads: Any, *, masked: bool, source: str) -> Checkpoint:
    """The checkpoint with the heads of `own` that heads= keeps too, all of `own` without it; the others cut out, or masked to 0.

    own: what a source's gates or a directory keep.  heads: as read_heads takes it, by the source's numbers.  Raises InputError as it does,
    and where no head is left of a model that needs one.
    """
    if heads is not None:
        attentions = [layer.attention for layer in checkpoint.spec.layers]
        own = own.intersect(read_heads(heads, len(attentions), [a.source_heads for a in attentions]))
    chosen = (mask if masked else prune)(checkpoint, own.kept, own.scales)
    require_heads(chosen.spec, source)
    return chosen


def require_heads(spec: ModelSpec, source: str) -> None:
    """Raise InputError where no head is left of a model whose attention has nothing beside its heads' (BERT and its kin, GPT-2)."""
    attentions = [layer.attention for layer in spec.layers]
    if all(isinstance(a.position, Absolute) and not a.heads for a in attentions):
        raise InputError(Problem("heads", "at least one head left in the model", "none: all are pruned"), source=source)


def _choice(heads: Any, counts: tuple[int, ...], problems: list[Problem]) -> HeadChoice:
    if isinstance(heads, Mapping):
        return HeadChoice(_kept_without(heads, counts, problems), None)
    if isinstance(heads, (list, tuple)):
        return HeadChoice(_kept(heads, counts, problems), None)
    if hasattr(heads, "detach"):  # a torch tensor; NumPy has no bfloat16 of torch's
        heads = heads.detach().cpu().double().numpy()
    if isinstance(heads, np.ndarray):
        return _from_array(heads, counts, problems)
    problems.append(Problem("heads", FORMS, repr(heads)[:60]))
    return HeadChoice((), None)


def _kept_without(pruned: Mapping[Any, Any], counts: tuple[int, ...], problems: list[Problem]) -> tuple[tuple[int, ...], ...]:
    gone: dict[int, list[int]] = {}
    for key, heads in pruned.items():
        layer = _layer_number(key)
        if layer is None or not 0 <= layer < len(counts):
            problems.append(Problem(f"heads: layer {key!r}", f"a layer from 0 to {len(counts) - 1}", "no such layer"))
        elif layer in gone:
            problems.append(Problem(f"heads: layer {layer}", "once", "twice"))
        else:
            gone[layer] = _head_numbers(f"heads: layer {layer}", heads, counts[layer], problems)
    return tuple(tuple(head for head in range(count) if head not in gone.get(layer, ())) for layer, count in enumerate(counts))


def _kept(kept: Sequence[Any], counts: tuple[int, ...], problems: list[Problem]) -> tuple[tuple[int, ...], ...]:
    if len(kept) != len(counts):
        problems.append(Problem("heads", f"a list of kept heads for each of {len(counts)} layers", f"{len(kept)} entries"))
        return ()
    return tuple(tuple(sorted(_head_numbers(f"heads: layer {i}", heads, counts[i], problems))) for i, heads in enumerate(kept))


def _from_array(array: np.ndarray, counts: tuple[int, ...], problems: list[Problem]) -> HeadChoice:
    """Layers with fewer heads than the widest have zeros behind them."""
    shape = (len(counts), max(counts, default=0))
    if array.shape != shape:
        problems.append(Problem("heads", f"an array of {shape[0]} layers × {shape[1]} heads", str(list(array.shape))))
        return HeadChoice((), None)
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        problems.append(Problem("heads", "an array of numbers", array.dtype.name))
        return HeadChoice((), None)
    values = array.astype(np.float64)
    for layer, head in zip(*np.nonzero(~(np.abs(values) <= np.finfo(np.float32).max)), strict=True):
        problems.append(Problem(f"heads: layer {layer}, head {head}", "a finite number", str(values[layer, head])))
    for layer, count in enumerate(counts):
        if values[layer, count:].any():
            problems.append(Problem(f"heads: layer {layer}", f"zeros behind its {count} heads", str(values[layer, count:].tolist())[:60]))
    kept = tuple(tuple(np.flatnonzero(row).tolist()) for row in values)
    scales = tuple(tuple(values[layer, list(heads)].tolist()) for layer, heads in enumerate(kept))
    return HeadChoice(kept, None if all(scale == 1 for row in scales for scale in row) else scales)


def _head_numbers(where: str, heads: Any, count: int, problems: list[Problem]) -> list[int]:
    if not isinstance(heads, (list, tuple, set, frozenset, range, np.ndarray)) or (isinstance(heads, np.ndarray) and heads.ndim != 1):
        problems.append(Problem(where, "a list of head numbers", repr(heads)[:60]))
        return []
    numbers = [_integer(head) for head in heads]
    for head, number in zip(heads, numbers, strict=True):
        if number is None or not 0 <= number < count:
            problems.append(Problem(where, f"heads from 0 to {count - 1}" if count else "no heads", repr(head)[:60]))
    valid = Counter(number for number in numbers if number is not None)
    problems.extend(Problem(where, "each head once", f"{number} {times} times") for number, times in valid.items() if times > 1)
    return list(valid)


def _layer_number(key: Any) -> int | None:
    """A layer from a dict key, which in JSON is text."""
    if isinstance(key, str):
        return int(key) if key.isascii() and key.isdecimal() and len(key) < 10 and str(int(key)) == key else None
    return _integer(key)


def _integer(value: Any) -> int | None:
    try:
        return None if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        return None


def _read_file(path: Path) -> Any:
    readers = {".json": _read_json, ".npy": _read_npy, ".pt": _read_pt, ".pth": _read_pt}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(Problem("heads", "a .json, .npy or .pt file", repr(str(path))), hint=f"it holds {FORMS}")
    return reader(path)


def _read_json(path: Path) -> Any:
    return parse_json(read_bytes(path, InputError), str(path), InputError)


def _read_npy(path: Path) -> np.ndarray:
    read_bytes(path, InputError)  # a regular file of a sane size
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            array = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: a header cannot claim more than the file holds
    except Exception as error:  # NumPy evaluates the header's text and names no closed list of what that may raise
        raise InputError(Problem(str(path), "a whole .npy array of numbers", f"{type(error).__name__}: {str(error)[:120]}")) from error
    if not isinstance(array, np.ndarray):
        raise InputError(Problem(str(path), "one array", "an archive of several"))
    return array


def _read_pt(path: Path) -> np.ndarray:
    from engine.formats.pickles import load_head_mask  # needs torch

    return load_head_mask(path)
