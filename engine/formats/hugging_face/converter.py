"""Hugging Face directories → Checkpoint, without their library: the configuration's model_type chooses the row of ARCHITECTURES.

A directory of transformers 4 or 5, or of what came before it: config.json or bert_config.json, and tensors in model.safetensors, its
shards, or pytorch_model.bin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.checkpoint.side_files import SideFiles
from engine.errors import Problem
from engine.formats.base import Converted, Converter, Settings, SourceTensors, refuse
from engine.formats.hugging_face.architecture import Architecture
from engine.formats.hugging_face.config import same_by_other_names, unknown_keys
from engine.formats.hugging_face.gates import read_gates
from engine.formats.hugging_face.model_type import model_type
from engine.formats.hugging_face.names import own_names
from engine.formats.hugging_face.special_tokens import read_told
from engine.formats.hugging_face.table import ARCHITECTURES
from engine.formats.hugging_face.tokenizer import read_hugging_face_tokenizer


class HuggingFace(Converter):
    """Every model_type of ARCHITECTURES."""

    name = "huggingface"
    config_names = ("config.json", "bert_config.json")
    options = ("task", "model_type", "head_dim")

    def recognises(self, names: Sequence[str]) -> bool:
        return any(row.recognised_by in name for name in names for row in ARCHITECTURES.values())

    def require_config(self, config: Mapping[str, Any], source: str) -> None:
        model_type(config, {}, (), source, [])

    def read(self, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any], options: Mapping[str, Any], path: Path) -> Converted:
        problems: list[Problem] = []
        notes: list[str] = []
        kind = model_type(config, options, tensors, path.name, notes)
        architecture = ARCHITECTURES[kind]
        alike = {row.prefix for row in ARCHITECTURES.values() if row.layers == architecture.layers} - {architecture.prefix}
        source = SourceTensors(own_names(tensors, architecture, alike, problems, notes), problems)
        refuse(problems, self, path)  # the names found, once
        unread = unknown_keys(config, architecture, notes)
        settings = Settings(same_by_other_names(config, architecture, problems, notes), options, problems, notes)
        settings.unknown_options(self.options)
        before = len(problems)
        task = architecture.read_task(source, settings, notes)
        _refuse_changes(architecture, settings)
        if len(problems) > before:
            refuse(problems, self, path)  # what else its tensors are says nothing
        checkpoint, kept = architecture.read(task, source, settings, notes)
        gates = read_gates(source, kept, [layer.attention.source_heads for layer in checkpoint.spec.layers], notes)
        source.finish()
        refuse(problems, self, path)
        told = {} if config.get("model_type") == kind else {"model_type": kind}
        return Converted(checkpoint, gates.kept, gates.scales, notes, unread, told, gates.undecided)

    def tokenizer(self, files: SideFiles, config: Mapping[str, Any], source: str, vocab: int, notes: list[str]) -> str | None:
        """A tokenizer.json may have other numbers of tokens than the model: ids beyond it are refused when they are used."""
        kind = model_type(config, {}, (), source, [])
        return read_hugging_face_tokenizer(ARCHITECTURES[kind].tokenizer, kind, files, notes)

    def tokenizer_settings(self, files: SideFiles) -> Mapping[str, Any]:
        """Roles of special tokens, the side of padding and the class, as tokenizer_config.json and special_tokens_map.json have them."""
        return read_told(files, []).written_back


CONVERTER = HuggingFace()


def _refuse_changes(architecture: Architecture, settings: Settings) -> None:
    for key, change in architecture.changes_the_computation.items():
        value = settings.value(key)
        if (expected := change(value, settings)) is not None:
            settings.problem(f"config {key}", expected, "true" if value is True else repr(value)[:60])
