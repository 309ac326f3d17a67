"""Hugging Face directories → Checkpoint, without their library: the configuration's model_type chooses the layout.

A directory of transformers 4 or 5: config.json, and tensors in model.safetensors, its shards, or pytorch_model.bin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.convert.base import Converted, Settings, SourceTensors, refuse
from engine.convert.flags import report_unknown
from engine.convert.hugging_face_encoder import read_encoder
from engine.convert.hugging_face_gpt2 import read_gpt2
from engine.convert.hugging_face_names import FAMILIES, GPT2_SETTINGS, MEANT, WITHOUT_MEANING
from engine.errors import ConversionError, Problem

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
        kind = config.get("model_type")
        if not isinstance(kind, str) or kind not in MODEL_TYPES:
            found = "nothing: no config.json beside the file" if not config else repr(kind)[:60]
            hint = f"this Headcount converts {', '.join(MODEL_TYPES)}"
            raise ConversionError(Problem("config model_type", "one of " + ", ".join(MODEL_TYPES), found), source=path.name, hint=hint)
        problems: list[Problem] = []
        notes: list[str] = []
        family = FAMILIES.get(kind)
        source = SourceTensors(_renamed(tensors), problems)
        report_unknown(config, (*MEANT, *(family.settings.values() if family else GPT2_SETTINGS)), WITHOUT_MEANING, problems, notes)
        settings = Settings(config, options, problems, notes)
        settings.unknown_options(self.options)
        checkpoint, kept = read_encoder(family, source, settings, notes) if family else read_gpt2(source, settings, notes)
        source.finish()
        refuse(problems, self, path)
        return Converted(checkpoint, kept, None, notes)


CONVERTER = HuggingFace()


def _renamed(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    renamed = {}
    for name, array in tensors.items():
        for old, new in OLD_NAMES.items():
            if name.endswith(f"LayerNorm{old}") and name.removesuffix(old) + new not in tensors:
                name = name.removesuffix(old) + new
        renamed[name] = array
    return renamed
