"""The small files of one folder (configurations, tokenizers, vocabularies): each read and parsed once, whoever asks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.errors import CheckpointError, ConversionError, EngineError, Problem
from engine.spec.strict_json import parse_json, read_bytes


class SideFiles:
    """Files by path, and by name where they lie in `folder`. A file that cannot be read is an error for everyone who asks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._bytes: dict[Path, bytes] = {}
        self._values: dict[Path, Any] = {}

    def has(self, name: str) -> bool:
        return (self.folder / name).exists()

    def bytes(self, path: Path, error: type[EngineError] = CheckpointError) -> bytes:
        """Raises `error` as engine.spec.strict_json.read_bytes."""
        if path not in self._bytes:
            self._bytes[path] = read_bytes(path, error)
        return self._bytes[path]

    def json(self, path: Path, error: type[EngineError] = CheckpointError) -> Any:
        """The value of a JSON file; raises `error` as engine.spec.strict_json.parse_json."""
        if path not in self._values:
            self._values[path] = parse_json(self.bytes(path, error), str(path), error)
        return self._values[path]

    def text(self, name: str) -> str:
        """A text of the folder; raises ConversionError for bytes that are not UTF-8."""
        path = self.folder / name
        try:
            return self.bytes(path, ConversionError).decode()
        except UnicodeDecodeError as error:
            raise ConversionError(Problem(name, "text in UTF-8", f"a damaged byte at {error.start}"), source=str(path)) from None

    def json_object(self, name: str) -> dict[str, Any]:
        """A JSON object of the folder; raises ConversionError for any other value."""
        path = self.folder / name
        value = self.json(path, ConversionError)
        if not isinstance(value, dict):
            raise ConversionError(Problem(name, "a JSON object", type(value).__name__), source=str(path))
        return value

    def json_or_none(self, path: Path) -> Any:
        """The value of a JSON file where there is one that can be read; never raises."""
        try:
            return self.json(path)
        except CheckpointError:
            return None
