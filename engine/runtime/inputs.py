"""Token ids as a caller gives them → int64 arrays, every problem named by its position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.errors import InputError, Problem

SHOWN = 5  # problems reported of one input; more of the same tell nothing


def token_rows(ids: Any, vocab: int) -> list[np.ndarray]:
    """ids [B, T], or B lists of any length ≥ 1 → B int64 arrays; lists, NumPy or torch integers. Raises InputError."""
    ids = _to_host(ids, "ids")
    if not isinstance(ids, (list, tuple, np.ndarray)) or (isinstance(ids, np.ndarray) and ids.ndim != 2):
        raise InputError(Problem("ids", "[batch, tokens] integers", _described(ids)))
    if len(ids) == 0:
        raise InputError(Problem("ids", "at least one sequence", "none"))
    problems: list[Problem] = []
    rows = [_row(row, f"ids[{index}]", vocab, problems) for index, row in enumerate(ids)]
    _raise(problems)
    return rows


def matching_rows(given: Any, name: str, rows: Sequence[np.ndarray], *, most: int, default: int) -> list[np.ndarray]:
    """Numbers 0 to `most` for each token of `rows`, [B, T] or B lists → B int64 arrays; all `default` when None. Raises InputError."""
    if given is None:
        return [np.full(len(row), default) for row in rows]
    given = _to_host(given, name)
    if not isinstance(given, (list, tuple, np.ndarray)) or len(given) != len(rows):
        raise InputError(Problem(name, f"a row for each of {len(rows)} sequences", _described(given)))
    problems: list[Problem] = []
    found = []
    for index, (values, row) in enumerate(zip(given, rows, strict=True)):
        try:
            array = np.asarray(_to_host(values, name))
        except (ValueError, TypeError, OverflowError, RuntimeError):
            array = np.zeros(0, object)
        if array.shape != row.shape or array.dtype.kind not in "biuf":
            problems.append(Problem(f"{name}[{index}]", f"{len(row)} numbers, as ids has", _described(values)))
            continue
        for at in np.flatnonzero(~np.isin(array, np.arange(most + 1)))[:SHOWN].tolist():
            problems.append(Problem(f"{name}[{index}][{at}]", " or ".join(map(str, range(most + 1))), str(array[at])))
        found.append(np.nan_to_num(array).astype(np.int64))
    _raise(problems)
    return found


def rectangle(ids: Any, vocab: int) -> np.ndarray:
    """As token_rows for sequences of one length → int64 [B, T]."""
    rows = token_rows(ids, vocab)
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1:
        found = f"lengths from {lengths[0]} to {lengths[-1]}"
        raise InputError(Problem("ids", "sequences of one length", found), hint="score takes sequences of different lengths")
    return np.stack(rows)


def prompt_row(prompt: Any, where: str, vocab: int) -> np.ndarray:
    """One prompt of token ids [T] → int64 [T]. Raises InputError."""
    problems: list[Problem] = []
    row = _row(_to_host(prompt, where), where, vocab, problems)
    _raise(problems)
    return row


def is_batch(prompt: Any) -> bool:
    """Whether a prompt is several: a list of texts, of lists or of arrays, or an array [B, T]."""
    if isinstance(prompt, (list, tuple)):
        return len(prompt) > 0 and all(isinstance(p, (str, list, tuple)) or getattr(p, "ndim", 0) > 0 for p in prompt)
    return getattr(prompt, "ndim", 1) == 2


def _row(row: Any, where: str, vocab: int, problems: list[Problem]) -> np.ndarray:
    nothing = np.zeros(0, np.int64)
    row = _to_host(row, where)
    if not isinstance(row, (list, tuple, np.ndarray)):
        problems.append(Problem(where, "a list of token ids", _described(row)))
        return nothing
    if len(row) == 0 if not isinstance(row, np.ndarray) else row.size == 0:
        problems.append(Problem(where, "at least one token id", "none"))
        return nothing
    found = next((type(v).__name__ for v in row if isinstance(v, bool)), None) if not isinstance(row, np.ndarray) else None
    try:
        array = np.asarray(row)
    except (ValueError, TypeError, OverflowError, RuntimeError):
        array = np.zeros(0, object)
    if found is not None or array.ndim != 1 or array.dtype.kind not in "iu":
        problems.append(Problem(where, "a list of integers", found or _described(row)))
        return nothing
    for at in np.flatnonzero((array < 0) | (array >= vocab))[:SHOWN].tolist():
        problems.append(Problem(f"{where}[{at}]", f"a token id from 0 to {vocab - 1} (a vocabulary of {vocab})", str(array[at])))
    return array.astype(np.int64)


def _to_host(value: Any, where: str) -> Any:
    """A torch tensor as a NumPy array, without importing torch; everything else as it is."""
    if not hasattr(value, "detach"):
        return value
    try:
        return value.detach().cpu().numpy()
    except (TypeError, RuntimeError):
        raise InputError(Problem(where, "integers", _described(value))) from None


def _described(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"{value.dtype} {list(shape)}"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _raise(problems: Sequence[Problem]) -> None:
    if problems:
        more = f"and {len(problems) - SHOWN} more like these" if len(problems) > SHOWN else None
        raise InputError(problems[:SHOWN], hint=more)
