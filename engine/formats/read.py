"""read_source: a source of any format → one Checkpoint, gates applied and heads cut in memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engine.checkpoint import Checkpoint, validate
from engine.errors import ConversionError
from engine.formats.base import ConversionReport
from engine.formats.heads import HeadChoice, cut_heads
from engine.formats.source import Source, json_values, open_source
from engine.formats.source_tokenizer import VOCABULARIES, vocabulary_tokenizer
from engine.version import __version__

CONVERTER_VERSION = 1  # raised when the same source would convert to something else


def read_source(
    path: str | os.PathLike[str],
    *,
    format: str = "auto",
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    heads: Any = None,
    masked: bool = False,
    **options: Any,
) -> tuple[Checkpoint, ConversionReport]:
    """Convert a source checkpoint in memory: gates applied, heads= intersected with them, spec and tensors validated.

    path, config: as engine.formats.source.open_source takes them.  heads: as engine.formats.heads.read_heads.  masked: compute every head
    and multiply those not kept by 0.  options: settings of the format, and vocab= (a text file, one token per line).
    Raises ConversionError with every problem of tensors, configuration and options together, InputError for heads=.
    """
    return convert_source(open_source(path, config=config, format=format), options, heads=heads, masked=masked)


def convert_source(
    source: Source, options: Mapping[str, Any], *, heads: Any = None, masked: bool = False, hashed: bool = False
) -> tuple[Checkpoint, ConversionReport]:
    """As read_source, of a source that is open; hashed: with the SHA-256 of its files in the provenance, for which they are read whole."""
    file = source.file
    given = json_values(options, "options", file.name)
    converter, config = source.converter, source.config
    vocab = given.pop("vocab", None)
    converted = converter.read(source.loaded.tensors, config, given, file)
    _check(converted.checkpoint, file.name)
    own = HeadChoice(converted.kept, converted.scales)
    chosen = cut_heads(converted.checkpoint, own, heads, masked=masked, source=file.name)
    chosen = replace(chosen, weights=dict(chosen.weights))  # cut once: the source's own tensors are in memory, and can go
    if vocab is not None:
        tokenizer: str | None = vocabulary_tokenizer(vocab, chosen.spec.vocab)
    else:
        tokenizer = converter.tokenizer(source.files, config, file.name, chosen.spec.vocab, converted.notes)
    beside = converter.tokenizer_settings(source.files) if vocab is None and tokenizer is not None else {}
    kept = tuple(layer.attention.kept for layer in chosen.spec.layers)
    provenance = {
        "format": converter.name,
        "converter_version": CONVERTER_VERSION,
        "headcount_version": __version__,
        "source": file.name,
        **({"sha256": source.sha256()} if hashed else {}),
        "options": given,
        "config": {key: value for key, value in config.items() if key not in VOCABULARIES},
        "training": source.loaded.extras,
        "kept": [list(numbers) for numbers in kept],
        "notes": converted.notes,
        **({"tokenizer": dict(beside)} if beside else {}),
    }
    checkpoint = replace(chosen, provenance=provenance, tokenizer=tokenizer)
    report = ConversionReport(
        source=str(file),
        format=converter.name,
        output_dir=None,
        source_heads=tuple(layer.attention.source_heads for layer in checkpoint.spec.layers),
        kept=kept,
        parameters=sum(array.size for array in checkpoint.weights.values()),
        notes=tuple(converted.notes),
    )
    return checkpoint, report


def _check(checkpoint: Checkpoint, source: str) -> None:
    if problems := checkpoint.spec.problems():
        raise ConversionError(problems, source=source, hint="the source describes a model that cannot be")
    validate(checkpoint.spec, checkpoint.weights, source=source)
