"""A source opened once: its file of tensors, its configuration, its format, its tensors, and the files beside it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from engine.checkpoint.side_files import SideFiles
from engine.errors import ConversionError, Problem
from engine.formats.base import Converter
from engine.formats.names import common_prefix
from engine.formats.pickles import LoadedFile
from engine.formats.shards import files_of, load_source
from engine.formats.table import FORMATS, SUFFIXES, Format, formats
from engine.spec.strict_json import parse_json

CONFIG = "config.json"
AnyPath = str | os.PathLike[str]


def open_source(
    path: AnyPath, *, config: Any = None, format: str = "auto", files: SideFiles | None = None, model_type: Any = None
) -> Source:
    """Find the file of a source; nothing but config.json of a directory is read before it is asked for.

    path: a file, or a directory with exactly one checkpoint.  config: a path or a mapping; looked for beside the file when None.
    files: those beside it, where a caller has read some of them.  model_type: what a user says in place of config.json.
    Raises ConversionError for a directory that holds none, or several.
    """
    files = files or SideFiles(Path(path))
    file = _tensor_file(Path(path), files)
    return Source(file, config, format, files if files.folder == file.parent else SideFiles(file.parent), model_type)


class Source:
    """What a user gave to convert. Each property is read when it is first asked for and kept; each may raise ConversionError."""

    def __init__(self, file: Path, config: Any, format: str, files: SideFiles, model_type: Any = None) -> None:
        self.file = file  # of tensors, or the index of several
        self.files = files
        self._given = config
        self._format = format
        self._said = {} if model_type is None else {"model_type": model_type}

    @cached_property
    def loaded(self) -> LoadedFile:
        """Tensors by name and what stands beside them; every file of tensors is opened here, once."""
        return load_source(self.file)

    @cached_property
    def converter(self) -> Converter:
        """Of the one format that the user named, the configuration tells or the tensors' names show."""
        rows = [row for row in FORMATS if row.is_named(self._format)]
        if told := [row for row in rows if row.is_told(self._readable_config())]:
            rows = told
            converter: Converter = told[0].converter()
            if not self._said:
                converter.require_config(self.config_of(converter), self.file.name)  # before a large file is read
        return _recognised(rows, list(self.loaded.tensors), self._format, self.file.name)

    @cached_property
    def tensors(self) -> dict[str, np.ndarray]:
        """Tensors by names without a prefix that all share, where the converter knows none but those behind it."""
        tensors = self.loaded.tensors
        while not self.converter.recognises(list(tensors)) and (prefix := common_prefix(list(tensors))):
            tensors = {name.removeprefix(prefix): array for name, array in tensors.items()}
        return tensors

    @property
    def notes(self) -> list[str]:
        """What was chosen in finding the tensors."""
        shared = next((name.removesuffix(short) for name, short in zip(self.loaded.tensors, self.tensors, strict=True)), "")
        return [*self.loaded.notes, *([f"{shared} in front of every tensor's name left out"] if shared else [])]

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration as JSON values: given, read from a path, or the file of that name beside the source; empty without any."""
        return self.config_of(self.converter)

    def config_of(self, converter: Converter) -> dict[str, Any]:
        if isinstance(self._given, Mapping):
            return self._mapping
        path = self._given
        if path is None:
            path = next((self.files.folder / name for name in converter.config_names if self.files.has(name)), None)
            if path is None:
                return {}
        if not isinstance(path, (str, os.PathLike)):
            raise ConversionError(Problem("config", "a path or a mapping", type(path).__name__), source=self.file.name)
        value = self.files.json(Path(path), ConversionError)
        if not isinstance(value, dict):
            raise ConversionError(Problem("config", "a JSON object", type(value).__name__), source=str(path))
        return value

    def sha256(self) -> str:
        """Of the bytes of all files of tensors, in hex; reads them whole."""
        state = hashlib.sha256()
        for file in files_of(self.file):
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    state.update(block)
        return state.hexdigest()

    @cached_property
    def _mapping(self) -> dict[str, Any]:
        return json_values(self._given, "config", self.file.name)

    def _readable_config(self) -> Any:
        """The configuration where there is one that can be read; never raises."""
        given = self._given
        if given is None or isinstance(given, (str, os.PathLike)):
            given = self.files.json_or_none(self.files.folder / CONFIG if given is None else Path(given))
        return {**(given if isinstance(given, Mapping) else {}), **self._said} if self._said else given


def json_values(values: Mapping[str, Any], what: str, source: str) -> dict[str, Any]:
    """The mapping as JSON would give it back (tuples are lists, NumPy numbers are numbers), without entries that are None."""
    try:
        text = json.dumps({key: value for key, value in values.items() if value is not None}, default=_plain, allow_nan=False)
        result: dict[str, Any] = parse_json(text.encode(), what, ConversionError)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConversionError(Problem(what, "JSON values", str(error)[:120]), source=source) from error
    return result


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__}")


def _tensor_file(path: Path, files: SideFiles) -> Path:
    """The file itself, or the one checkpoint of a directory."""
    try:
        if not path.is_dir():
            return path
        config = files.json_or_none(path / CONFIG)
        for row in FORMATS:
            usual = isinstance(config, Mapping) and any(key in config for key in row.usual)
            told = row.is_told(config) or usual or any(files.has(name) for name in row.only_its_own)
            if told and (present := [path / name for name in row.files if (path / name).is_file()]):
                return present[0]
        found = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file())
    except (OSError, ValueError) as error:
        raise ConversionError(Problem("source", "a readable directory", str(error)), source=str(path)) from error
    if len(found) == 1:
        return found[0]
    names = ", ".join(file.name for file in found) or "none"
    expected = "exactly one checkpoint (" + ", ".join(f"*{suffix}" for suffix in SUFFIXES) + ")"
    raise ConversionError(Problem("source", expected, names), source=str(path), hint="name the file itself")


def _recognised(rows: Sequence[Format], names: list[str], format: str, source: str) -> Converter:
    """The converter of the one row that recognises the tensors' names, or what is behind a prefix that all share."""
    if not rows:
        raise ConversionError(Problem("format", "auto, " + ", ".join(formats()), repr(format)), source=source)
    converters: list[Converter] = [row.converter() for row in rows]
    behind = names
    while not (recognised := [converter for converter in converters if converter.recognises(behind)]) and (prefix := common_prefix(behind)):
        behind = [name.removeprefix(prefix) for name in behind]
    if len(recognised) == 1:
        return recognised[0]
    looked_for = "; ".join(f"{row.name} (looked for {row.tensor})" for row in rows)
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    found = f"the tensors of {' and '.join(c.name for c in recognised)}" if recognised else shown
    raise ConversionError(Problem("format", looked_for, found), source=source, hint="see the support table in README.md")
