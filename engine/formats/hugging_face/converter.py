"""Hugging Face directories → Checkpoint, without their library: the configuration's model_type chooses the row of ARCHITECTURES.

A directory of transformers 4 or 5: config.json, and tensors in model.safetensors, its shards, or pytorch_model.bin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.checkpoint.side_files import SideFiles
from engine.errors import ConversionError, Problem
from engine.formats.base import Converted, Converter, Settings, SourceTensors, refuse
from engine.formats.flags import report_unknown
from engine.formats.hugging_face.architecture import Architecture
from engine.formats.hugging_face.special_tokens import read_told
from engine.formats.hugging_face.table import ARCHITECTURES
from engine.formats.hugging_face.tokenizer import read_hugging_face_tokenizer

OLD_NAMES = {".gamma": ".weight", ".beta": ".bias"}  # of norms, before 2019


class HuggingFace(Converter):
    """Every model_type of ARCHITECTURES."""

    name = "huggingface"
    config_names = ("config.json",)
    options = ("task",)

    def recognises(self, names: Sequence[str]) -> bool:
        return any(row.recognised_by in name for name in names for row in ARCHITECTURES.values())

    def require_config(self, config: Mapping[str, Any], source: str) -> None:
        _architecture(config, source)

    def read(self, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any], options: Mapping[str, Any], path: Path) -> Converted:
        architecture = _architecture(config, path.name)
        problems: list[Problem] = []
        notes: list[str] = []
        source = SourceTensors(_renamed(tensors), problems)
        known = (*architecture.honoured, *architecture.changes_the_computation)
        report_unknown(config, known, architecture.harmless, problems, notes)
        settings = Settings(config, options, problems, notes)
        settings.unknown_options(self.options)
        before = len(problems)
        task = architecture.read_task(source, settings, notes)
        _refuse_changes(architecture, settings)
        if len(problems) > before:
            refuse(problems, self, path)  # what else its tensors are says nothing
        checkpoint, kept = architecture.read(task, source, settings, notes)
        source.finish()
        refuse(problems, self, path)
        return Converted(checkpoint, kept, None, notes)

    def tokenizer(self, files: SideFiles, config: Mapping[str, Any], source: str, vocab: int, notes: list[str]) -> str | None:
        """A tokenizer.json may have other numbers of tokens than the model: ids beyond it are refused when they are used."""
        return read_hugging_face_tokenizer(_architecture(config, source).tokenizer, config["model_type"], files, notes)

    def tokenizer_settings(self, files: SideFiles) -> Mapping[str, Any]:
        """Roles of special tokens, the side of padding and the class, as tokenizer_config.json and special_tokens_map.json have them."""
        return read_told(files, []).written_back


CONVERTER = HuggingFace()


def _architecture(config: Mapping[str, Any], source: str) -> Architecture:
    """Of the configuration's model_type; raises ConversionError with the list of them where it is none."""
    kind = config.get("model_type")
    if isinstance(kind, str) and kind in ARCHITECTURES:
        return ARCHITECTURES[kind]
    nothing = f"nothing: {'the configuration has none' if config else 'no config.json beside the file'}"
    found = repr(kind)[:60] if kind is not None else nothing
    hint = "see the support table in README.md"
    raise ConversionError(Problem("config model_type", "one of " + ", ".join(ARCHITECTURES), found), source=source, hint=hint)


def _refuse_changes(architecture: Architecture, settings: Settings) -> None:
    for key, change in architecture.changes_the_computation.items():
        value = settings.value(key)
        if (expected := change(value, settings)) is not None:
            settings.problem(f"config {key}", expected, "true" if value is True else repr(value)[:60])


def _renamed(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    renamed = {}
    for name, array in tensors.items():
        for old, new in OLD_NAMES.items():
            if name.endswith(f"LayerNorm{old}") and name.removesuffix(old) + new not in tensors:
                name = name.removesuffix(old) + new
        renamed[name] = array
    return renamed
