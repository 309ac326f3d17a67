"""Source files → NumPy arrays: PyTorch pickles, never executed, and safetensors; the only converter file that knows torch."""

from __future__ import annotations

import errno
import os
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from engine.checkpoint.tensor_file import read_tensors
from engine.errors import CheckpointError, ConversionError, Problem
from engine.formats.names import STATE_DICTS, find_state_dict, renamed, unwrapped

SAVE_HINT = "save its tensors alone and convert that file: torch.save(model.state_dict(), 'model.pt')"


@dataclass(frozen=True)
class LoadedFile:
    """tensors: name → array without wrapper prefixes, possibly memory-mapped.  extras: integers beside the state dict (epoch, ...).

    notes: which of several state dicts it is.
    """

    tensors: dict[str, np.ndarray]
    extras: dict[str, int]
    notes: tuple[str, ...] = ()


def load_tensors(path: Path) -> LoadedFile:
    """The state dict of a .ckpt, .pt, .pth, .bin or .safetensors file; raises ConversionError whatever the bytes are."""
    loaded = load_as_named(path)
    return replace(loaded, tensors=without_wrappers(loaded.tensors, path.name))


def load_as_named(path: Path) -> LoadedFile:
    """As load_tensors, by the names in the file."""
    source = path.name
    if path.suffix == ".safetensors":
        _check_file(path)
        return LoadedFile(_load_safetensors(path), {})
    with _opened(path) as file:
        state, extras, notes = _state_dict(_torch_load(path, file), source)
        problems: list[Problem] = []
        arrays: dict[str, np.ndarray] = {}
        for key, value in state.items():
            name = _printable(key)
            if not isinstance(key, str) or name in arrays:
                problems.append(Problem(name, "the name of one tensor", repr(type(key).__name__)))
                continue
            array = _to_array(name, value, path.stat().st_size, problems)
            if array is not None:
                arrays[name] = array
        if problems:
            raise ConversionError(problems, source=source, hint=SAVE_HINT)
        _check_records(path, file, state.values())
    return LoadedFile(arrays, extras, notes)


def load_array(path: Path) -> np.ndarray:
    """The one tensor a .pt file holds, such as a head mask; raises ConversionError for anything else."""
    with _opened(path) as file:
        return _one_array(_torch_load(path, file), path, file)


def load_head_mask(path: Path) -> np.ndarray:
    """A mask of heads: the file's one tensor, or the first of TextPruner's two, whose second may take nothing from the feed-forwards.

    Raises ConversionError as load_array does, and where the second mask would be lost.
    """
    with _opened(path) as file:
        value = _torch_load(path, file)
        if not isinstance(value, (tuple, list)) or len(value) != 2 or not _is_tensor(value[0]):
            return _one_array(value, path, file)
        problems: list[Problem] = []
        size = path.stat().st_size
        heads = _to_array("head mask", value[0], size, problems)
        inner = None if value[1] is None else _to_array("feed-forward mask", value[1], size, problems)
        if inner is not None and (cut := int((inner == 0).sum())):
            problems.append(Problem("feed-forward mask", "none, or ones: only heads are pruned here", f"{cut} zeros"))
        if heads is None or problems:
            raise ConversionError(problems, source=path.name, hint="save the mask of the heads alone: torch.save(masks[0], 'heads.pt')")
        _check_records(path, file, [held for held in value if held is not None])
        return heads


def _one_array(value: Any, path: Path, file: BinaryIO) -> np.ndarray:
    problems: list[Problem] = []
    array = _to_array("the file", value, path.stat().st_size, problems)
    if array is None:
        raise ConversionError(problems, source=path.name, hint="save one tensor: torch.save(mask, 'mask.pt')")
    _check_records(path, file, [value])
    return array


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The one handle through which a pickle is looked at; torch, which maps files by their names alone, opens its own."""
    _check_file(path)
    with path.open("rb") as file:
        yield file


def _check_file(path: Path) -> None:
    try:
        if not path.exists():
            raise ConversionError(Problem("source", "a checkpoint file", "no such file"), source=str(path))
        if not path.is_file():
            raise ConversionError(Problem("source", "a checkpoint file", "a directory or device"), source=str(path))
        if path.stat().st_size == 0:
            raise ConversionError(Problem("source", "a checkpoint file", "an empty file"), source=str(path))
        if not os.access(path, os.R_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        raise ConversionError(Problem("source", "a readable file", str(error)), source=str(path)) from error


def _load_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        return read_tensors(path)
    except CheckpointError as error:
        raise ConversionError(error.problems, source=path.name, hint=error.hint) from error


def _torch_load(path: Path, file: BinaryIO) -> Any:
    """torch.load with weights_only; zip archives are memory-mapped, which also bounds every storage by the file's own bytes."""
    try:
        import torch
    except ImportError as error:
        raise ConversionError(
            "PyTorch is needed to read this file and is not installed", source=path.name, hint="pip install 'headcount[torch]'"
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=_is_zip(file))
    except Exception as error:  # damaged bytes make torch and pickle raise anything from KeyError to MemoryError
        raise _load_error(error, path) from error


def _is_zip(file: BinaryIO) -> bool:
    file.seek(0)
    return file.read(4) == b"PK\x03\x04"


def _check_records(path: Path, file: BinaryIO, tensors: Iterable[Any]) -> None:
    """Raise ConversionError where the pickle tells other sizes than the archive's records have.

    torch takes its word when it maps a file, and a tensor would show the bytes of its neighbours.
    """
    if not _is_zip(file):
        return
    storages = {held.data_ptr(): held.nbytes() for held in (value.untyped_storage() for value in tensors) if held.nbytes()}
    try:
        with zipfile.ZipFile(file) as archive:
            records = Counter(record.file_size for record in archive.infolist() if "/data/" in record.filename)
    except Exception as error:  # damaged archives make zipfile raise more than BadZipFile
        raise _load_error(error, path) from error
    if wrong := Counter(storages.values()) - records:
        problem = Problem("file", "tensors as long as the records they lie in", f"one of {min(wrong)} bytes without such a record")
        raise ConversionError(problem, source=path.name, hint="the file is truncated, damaged or of another kind")


def _load_error(error: Exception, path: Path) -> ConversionError:
    text = str(error)
    if any(mark in text for mark in ("Unsupported global", "Unsupported class", "TorchScript", "is blocked", "unrecognized function")):
        found = "a pickle that runs code when it is read (a whole module, or objects beside the tensors); it was not run"
        return ConversionError(Problem("file", "a file of tensors", found), source=path.name, hint=SAVE_HINT)
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    found = f"bytes that cannot be read ({type(error).__name__}: {first[:120]})"
    return ConversionError(
        Problem("file", "a complete PyTorch checkpoint", found), source=path.name, hint="the file is truncated, damaged or of another kind"
    )


def _state_dict(content: Any, source: str) -> tuple[Mapping[Any, Any], dict[str, int], tuple[str, ...]]:
    """The mapping that holds the tensors, the plain values beside it, and which of several it is."""
    if not isinstance(content, Mapping):
        raise ConversionError(Problem("file", "a dict of tensors", type(content).__name__), source=source, hint=SAVE_HINT)
    notes: list[str] = []
    state = find_state_dict(content, _is_tensor, notes)
    if state is not None:
        extras = {} if state is content else {_printable(key): value for key, value in content.items() if isinstance(value, int)}
        return state, extras, tuple(_printable(note) for note in notes)
    keys = ", ".join(str(key)[:40] for key in list(content)[:8]) or "nothing"
    expected = "tensors at the top level or under " + ", ".join(STATE_DICTS)
    raise ConversionError(Problem("file", expected, f"the entries {keys}"), source=source, hint=SAVE_HINT)


def _printable(key: Any) -> str:
    """A name that every terminal and JSON file can hold; damaged files have half characters in them."""
    return str(key)[:200].encode("utf-8", "backslashreplace").decode()


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _to_array(name: str, value: Any, file_size: int, problems: list[Problem]) -> np.ndarray | None:
    """A view of a plain strided tensor; everything else is a problem."""
    import torch

    if not isinstance(value, torch.Tensor):
        problems.append(Problem(name, "a tensor", type(value).__name__))
        return None
    try:
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            problems.append(Problem(name, "a dense tensor", f"{value.layout}, {value.dtype}, {value.device.type}"))
            return None
        if value.numel() * value.element_size() > file_size:  # strides of zero can claim any size
            problems.append(Problem(name, f"at most the {file_size} bytes of the file", f"a tensor of shape {list(value.shape)}"))
            return None
        plain = value.detach()
        if plain.dtype == torch.bfloat16:
            brain: np.ndarray = plain.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
            return brain
        array: np.ndarray = plain.resolve_conj().resolve_neg().numpy()
        return array
    except Exception as error:  # float8, bits and other types NumPy has no name for
        problems.append(Problem(name, "a tensor of numbers", f"{getattr(value, 'dtype', '?')} ({type(error).__name__})"))
        return None


def without_wrappers(arrays: Mapping[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
    """Names without wrapper prefixes; two names that become one are an error."""
    problems: list[Problem] = []
    result = renamed(arrays, unwrapped, problems)
    if problems:
        raise ConversionError(problems, source=source, hint="the file holds two models; keep one state dict")
    return result
