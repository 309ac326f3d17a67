"""Hugging Face directories → Checkpoint, without their library: the configuration's model_type chooses the layout.

A directory of transformers 4 or 5: config.json, and tensors in model.safetensors, its shards, or pytorch_model.bin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import ConversionError, Problem
from engine.formats.base import Converted, Settings, SourceTensors, refuse
from engine.formats.flags import report_unknown
from engine.formats.hugging_face.encoder import read_encoder
from engine.formats.hugging_face.gpt2 import read_gpt2, read_gpt2_task
from engine.formats.hugging_face.names import FAMILIES, GPT2_SETTINGS, MEANT, WITHOUT_MEANING
from engine.formats.hugging_face.tasks import read_task

MODEL_TYPES = (*FAMILIES, "gpt2")
LAYERS = (".layer.0.attention.", "h.0.attn.c_attn.")  # in the name of a tensor of every layout read here
OLD_NAMES = {".gamma": ".weight", ".beta": ".bias"}  # of norms, before 2019


class HuggingFace:
    """Every model_type of MODEL_TYPES."""

    name = "huggingface"
    config_names = ("config.json",)
    options = ("task",)

    def recognises(self, names: Sequence[str]) -> bool:
        return any(part in name for name in names for part in LAYERS)

    def read(self, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any], options: Mapping[str, Any], path: Path) -> Converted:
        kind = require_model_type(config, path.name)
        problems: list[Problem] = []
        notes: list[str] = []
        family = FAMILIES.get(kind)
        source = SourceTensors(_renamed(tensors), problems)
        report_unknown(config, (*MEANT, *(family.settings.values() if family else GPT2_SETTINGS)), WITHOUT_MEANING, problems, notes)
        settings = Settings(config, options, problems, notes)
        settings.unknown_options(self.options)
        known = len(problems)
        task = read_task(family, source, settings, notes) if family else read_gpt2_task(settings)
        refuse_variants(settings, hidden_name=family.settings["hidden"] if family else "n_embd")
        if len(problems) > known:
            refuse(problems, self, path)  # what else its tensors are says nothing
        checkpoint, kept = read_encoder(family, task, source, settings, notes) if family else read_gpt2(source, settings, notes)
        source.finish()
        refuse(problems, self, path)
        return Converted(checkpoint, kept, None, notes)


CONVERTER = HuggingFace()


def require_model_type(config: Mapping[str, Any], source: str) -> str:
    """The configuration's model_type; raises ConversionError with the list of MODEL_TYPES where it is none of them."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in MODEL_TYPES:
        found = (
            repr(kind)[:60]
            if kind is not None
            else f"nothing: {'the configuration has none' if config else 'no config.json beside the file'}"
        )
        hint = "see the support table in README.md"
        raise ConversionError(Problem("config model_type", "one of " + ", ".join(MODEL_TYPES), found), source=source, hint=hint)
    return kind


def refuse_variants(settings: Settings, hidden_name: str) -> None:
    """What the layouts can be told to do and these converters do not."""
    kind = settings.value("position_embedding_type")
    if kind not in (None, "absolute"):
        settings.problem("config position_embedding_type", "absolute, the only one converted", repr(kind)[:60])
    for name in ("is_decoder", "add_cross_attention"):
        if settings.value(name):
            settings.problem(f"config {name}", "false: models are converted without the parts of a decoder beside an encoder", "true")
    width, hidden = settings.value("embedding_size"), settings.value(hidden_name)
    if width not in (None, hidden):
        expected = f"{hidden}, the hidden size: embeddings of another size are not converted"
        settings.problem("config embedding_size", expected, repr(width)[:60])


def _renamed(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    renamed = {}
    for name, array in tensors.items():
        for old, new in OLD_NAMES.items():
            if name.endswith(f"LayerNorm{old}") and name.removesuffix(old) + new not in tensors:
                name = name.removesuffix(old) + new
        renamed[name] = array
    return renamed
