"""The source formats: one row each, and what is said where none of them fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Format:
    """One source format. module: offers its converter (engine.formats.base) as CONVERTER, imported when it is needed.

    tensor: one by which the converter recognises a file. told_by: a key of config.json that only this format has, so that its directory is
    known before a tensor is read, and the first of `files` in it is the one to read; None where tensors alone tell. only_its_own: names of
    files of the same meaning. usual: keys of a config.json without told_by, which makes the first of `files` the one to read among several.
    """

    name: str
    aliases: tuple[str, ...]
    module: str
    tensor: str
    told_by: str | None = None
    files: tuple[str, ...] = ()
    only_its_own: tuple[str, ...] = ()
    usual: tuple[str, ...] = ()

    def is_named(self, name: Any) -> bool:
        """Whether a user's word for a format, in any spelling, means this one; auto means every one."""
        return str(name).lower().replace("_", "-") in ("auto", self.name, *self.aliases)

    def is_told(self, config: Any) -> bool:
        """Whether a configuration, of any type, says that the source is of this format."""
        return self.told_by is not None and isinstance(config, Mapping) and self.told_by in config

    def converter(self) -> Any:
        return import_module(self.module).CONVERTER


FORMATS = (
    Format("aiha-lab", ("aiha",), "engine.formats.aiha", "layers.0.attn.q_proj.weight.data"),
    Format("fair", ("adaptive-span", "all-attention"), "engine.formats.fair", "layers.0.attn.proj_query.weight"),
    Format(
        "huggingface",
        ("hf", "transformers"),
        "engine.formats.hugging_face.converter",
        "encoder.layer.0.attention.self.query.weight",
        told_by="model_type",
        files=("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"),
        only_its_own=("bert_config.json",),
        usual=("architectures", "num_attention_heads", "n_heads", "n_head"),
    ),
    Format("transformer-xl", ("txl", "transformer-xl-kimiyoung"), "engine.formats.transformer_xl", "layers.0.dec_attn.qkv_net.weight"),
)
SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")  # of files of tensors


def formats() -> tuple[str, ...]:
    """The names `format=` takes, besides auto."""
    return tuple(row.name for row in FORMATS)
