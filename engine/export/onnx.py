"""A model → one .onnx file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.backends.checks import require_finite
from engine.backends.fold import fold
from engine.backends.plan import compile_stack
from engine.checkpoint import destination
from engine.checkpoint.new_directory import new_file
from engine.errors import CheckpointError, Problem
from engine.export.onnx_graph import encoder_graph
from engine.formats.open import open_checkpoint

AnyPath = str | os.PathLike[str]


def export_onnx(
    path: AnyPath,
    output: AnyPath,
    *,
    config: AnyPath | Mapping[str, Any] | None = None,
    heads: Any = None,
    force: bool = False,
    **options: Any,
) -> Path:
    """Write an encoder as one .onnx file in float32, each layer with its own number of heads; the path written.

    Inputs input_ids, attention_mask, token_type_ids (where the model has types) int64 [batch, sequence]; output logits, or without a head
    last_hidden_state. config, heads, options as for load; force replaces a file. Raises an EngineError, and then nothing was written.
    """
    target = destination(output)
    if target.is_dir() or (os.path.lexists(target) and not force):
        hint = "choose another output file, or replace a file with --force (force=True)"
        raise CheckpointError(Problem(str(target), "no such file yet", "a directory" if target.is_dir() else "one that exists"), hint=hint)
    checkpoint = open_checkpoint(path, config=config, heads=heads, **options)
    require_finite(checkpoint, str(path))
    data = encoder_graph(compile_stack(checkpoint.spec), fold(checkpoint))
    try:
        new_file(target, data)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{target}: cannot be written: {error}", hint="nothing was written; choose another output file") from error
    return target
