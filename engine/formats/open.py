"""A path → Checkpoint: an engine directory as it stands, or a source of any format converted in memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from engine import checkpoint as checkpoints
from engine.checkpoint import Checkpoint
from engine.checkpoint.side_files import SideFiles
from engine.errors import InputError, Problem
from engine.formats.base import ConversionReport
from engine.formats.heads import HeadChoice, cut_heads
from engine.formats.read import convert_source
from engine.formats.source import open_source

AnyPath = str | os.PathLike[str]


def open_checkpoint(
    path: AnyPath,
    *,
    config: AnyPath | Mapping[str, Any] | None = None,
    heads: Any = None,
    check: bool = False,
    strict: bool = False,
    **options: Any,
) -> Checkpoint:
    """The spec and weights that engine.load would run, with nothing built; arguments and errors as there."""
    return read_path(path, options, config=config, heads=heads, check=check, strict=strict)[0]


def read_path(
    path: AnyPath,
    options: Mapping[str, Any],
    *,
    format: str = "auto",
    config: AnyPath | Mapping[str, Any] | None = None,
    heads: Any = None,
    check: bool = False,
    masked: bool = False,
    hashed: bool = False,
    strict: bool = False,
) -> tuple[Checkpoint, ConversionReport]:
    """The checkpoint at a path and what was done to it. hashed: as engine.formats.read.convert_source; all else as engine.load.

    Each configuration is parsed once and each file of weights opened once, besides what hashed=True and check=True read.
    """
    if not isinstance(path, (str, os.PathLike)) or not str(path):
        raise InputError(Problem("path", "a file or a directory", repr(path)))
    if clash := [name for name in ("path", "format", "masked") if name in options]:  # parameters elsewhere, no settings of a source
        raise InputError([Problem(f"option {name}", "no such option here", repr(options[name])[:60]) for name in clash])
    files = SideFiles(Path(path))
    if format == "auto" and checkpoints.is_engine_directory(path, files):
        return _read_directory(Path(path), files, options, config, heads, check=check, masked=masked)
    source = open_source(path, config=config, format=format, files=files, model_type=options.get("model_type"))
    return convert_source(source, options, heads=heads, masked=masked, hashed=hashed, strict=strict)


def _read_directory(
    path: Path, files: SideFiles, options: Mapping[str, Any], config: Any, heads: Any, *, check: bool, masked: bool
) -> tuple[Checkpoint, ConversionReport]:
    foreign = ([] if config is None else [Problem("config", "nothing: the directory has its own", repr(config)[:60])]) + [
        Problem(f"option {name}", "nothing: an engine directory takes none", repr(value)[:60]) for name, value in options.items()
    ]
    if foreign:
        raise InputError(foreign, source=str(path))
    checkpoint = checkpoints.read(path, check=check, files=files)
    if heads is not None:
        own = HeadChoice(tuple(layer.attention.kept for layer in checkpoint.spec.layers), None)
        checkpoint = cut_heads(checkpoint, own, heads, masked=masked, source=str(path))
    attentions = [layer.attention for layer in checkpoint.spec.layers]
    report = ConversionReport(
        source=str(path),
        format="engine",
        output_dir=None,
        source_heads=tuple(a.source_heads for a in attentions),
        kept=tuple(a.kept for a in attentions),
        parameters=sum(prod(shape) for shape in checkpoint.spec.tensors().values()),
    )
    return checkpoint, report
