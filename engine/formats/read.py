"""read_source: a source of any format → one Checkpoint, gates applied and heads cut in memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engine.checkpoint import Checkpoint, validate
from engine.errors import ConversionError, Problem
from engine.formats.base import ConversionReport, Converted
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
    strict: bool = False,
    **options: Any,
) -> tuple[Checkpoint, ConversionReport]:
    """Convert a source checkpoint in memory: gates applied, heads= intersected with them, spec and tensors validated.

    path, config: as engine.formats.source.open_source takes them.  heads: as engine.formats.heads.read_heads.  masked: compute every head
    and multiply those not kept by 0.  strict: refuse a key of the configuration that is on no list of the format.
    options: settings of the format, and vocab= (a text file, one token per line).
    Raises ConversionError with every problem of tensors, configuration and options together, InputError for heads=.
    """
    source = open_source(path, config=config, format=format, model_type=options.get("model_type"))
    return convert_source(source, options, heads=heads, masked=masked, strict=strict)


def convert_source(
    source: Source, options: Mapping[str, Any], *, heads: Any = None, masked: bool = False, hashed: bool = False, strict: bool = False
) -> tuple[Checkpoint, ConversionReport]:
    """As read_source, of a source that is open; hashed: with the SHA-256 of its files in the provenance, for which they are read whole."""
    file = source.file
    given = json_values(options, "options", file.name)
    converter, config = source.converter, source.config
    vocab = given.pop("vocab", None)
    converted = converter.read(source.tensors, config, given, file)
    _require_known(converted, strict=strict, heads=heads, source=file.name)
    config = {**config, **converted.told}
    notes = [*source.notes, *converted.notes]
    _check(converted.checkpoint, file.name)
    own = HeadChoice(converted.kept, converted.scales)
    chosen = cut_heads(converted.checkpoint, own, heads, masked=masked, source=file.name)
    chosen = replace(chosen, weights=dict(chosen.weights))  # cut once: the source's own tensors are in memory, and can go
    if vocab is not None:
        tokenizer: str | None = vocabulary_tokenizer(vocab, chosen.spec.vocab)
    else:
        tokenizer = converter.tokenizer(source.files, config, file.name, chosen.spec.vocab, notes)
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
        "notes": notes,
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
        notes=tuple(notes),
    )
    return checkpoint, report


def _require_known(converted: Converted, *, strict: bool, heads: Any, source: str) -> None:
    """Raise ConversionError for keys that strict refuses, and where the file leaves to heads= which heads are kept."""
    unread = converted.unread if strict else ()
    problems = [Problem(f"config {key}", "a key that is known to this format", "one that is not") for key in unread]
    hint = "without strict (--strict) such keys are noted and not used" if problems else None
    if converted.undecided is not None and heads is None:
        problems.append(converted.undecided)
    if problems:
        raise ConversionError(problems, source=source, hint=hint)


def _check(checkpoint: Checkpoint, source: str) -> None:
    if problems := checkpoint.spec.problems():
        raise ConversionError(problems, source=source, hint="the source describes a model that cannot be")
    validate(checkpoint.spec, checkpoint.weights, source=source)
