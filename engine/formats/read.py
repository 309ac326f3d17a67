"""Source formats: a literal table, and read_source, which turns any of them into one Checkpoint."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from engine.checkpoint import Checkpoint, validate
from engine.checkpoint.surgery import mask, prune
from engine.errors import ConversionError, Problem
from engine.formats.base import ConversionReport, Converted, Converter
from engine.formats.heads import read_heads, require_heads
from engine.formats.hugging_face.converter import CONVERTER as HUGGING_FACE
from engine.formats.hugging_face.converter import require_model_type
from engine.formats.hugging_face.files import files_of, hugging_face_file, load_tensors, names_model_type
from engine.formats.hugging_face.tokenizer import read_hugging_face_tokenizer
from engine.formats.source_tokenizer import VOCABULARIES, read_tokenizer
from engine.spec.strict_json import parse_json, read_bytes

CONVERTER_VERSION = 1  # raised when the same source would convert to something else

FORMATS = (  # name, module, other names, tensors it is recognised by
    ("aiha-lab", "engine.formats.aiha", ("aiha",), "layers.0.attn.q_proj.weight.data"),
    ("fair", "engine.formats.fair", ("adaptive-span", "all-attention"), "layers.0.attn.proj_query.weight"),
    ("huggingface", "engine.formats.hugging_face.converter", ("hf", "transformers"), "encoder.layer.0.attention.self.query.weight"),
    ("transformer-xl", "engine.formats.transformer_xl", ("txl", "transformer-xl-kimiyoung"), "layers.0.dec_attn.qkv_net.weight"),
)
SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")


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

    path: a file, or a directory with exactly one checkpoint.  config: path or mapping; looked for beside the file when None.
    heads: as engine.formats.heads.read_heads takes it.  masked: compute every head and multiply those not kept by 0.
    options: settings of the format, and vocab= (a text file, one token per line).
    Raises ConversionError with every problem of tensors, configuration and options together, InputError for heads=.
    """
    file = _checkpoint_file(Path(path))
    given = _json_values(options, "options", file.name)
    if any(name == HUGGING_FACE.name for name, *_ in _entries(format)) and names_model_type(config, file):
        format = HUGGING_FACE.name
        require_model_type(_config(config, HUGGING_FACE, file), file.name)  # before a large file is read
    loaded = load_tensors(file)
    converter = _converter(format, list(loaded.tensors), file.name)
    settings = _config(config, converter, file)
    vocab = given.pop("vocab", None)
    converted = converter.read(loaded.tensors, settings, given, file)
    _check(converted.checkpoint, file.name)
    chosen = _apply_heads(converted, heads, mask if masked else prune)
    require_heads(chosen.spec, file.name)
    if converter.name == "huggingface" and vocab is None:
        tokenizer = read_hugging_face_tokenizer(settings["model_type"], file, converted.notes)
    else:
        tokenizer = read_tokenizer(vocab, settings, file, converted.checkpoint.spec.vocab)
    kept = tuple(layer.attention.kept for layer in chosen.spec.layers)
    provenance = {
        "format": converter.name,
        "converter_version": CONVERTER_VERSION,
        "headcount_version": _version(),
        "source": file.name,
        "sha256": _sha256(files_of(file)),
        "options": given,
        "config": {key: value for key, value in settings.items() if key not in VOCABULARIES},
        "training": loaded.extras,
        "kept": [list(numbers) for numbers in kept],
        "notes": converted.notes,
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


def formats() -> tuple[str, ...]:
    """The names `format=` takes, besides auto."""
    return tuple(name for name, *_ in FORMATS)


def _checkpoint_file(path: Path) -> Path:
    """The file itself, or the one checkpoint of a directory."""
    try:
        if not path.is_dir():
            return path
        if (chosen := hugging_face_file(path)) is not None:
            return chosen
        found = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file())
    except (OSError, ValueError) as error:
        raise ConversionError(Problem("source", "a readable directory", str(error)), source=str(path)) from error
    if len(found) == 1:
        return found[0]
    names = ", ".join(file.name for file in found) or "none"
    expected = "exactly one checkpoint (" + ", ".join(f"*{suffix}" for suffix in SUFFIXES) + ")"
    raise ConversionError(Problem("source", expected, names), source=str(path), hint="name the file itself")


def _converter(format: str, names: Sequence[str], source: str) -> Converter:
    """The converter the user named, or the one that recognises the tensors' names."""
    table = _entries(format)
    if not table:
        raise ConversionError(Problem("format", "auto, " + ", ".join(formats()), repr(format)), source=source)
    converters: list[Converter] = [import_module(module).CONVERTER for _, module, _, _ in table]
    recognised = [converter for converter in converters if converter.recognises(names)]
    if len(recognised) == 1:
        return recognised[0]
    looked_for = "; ".join(f"{name} (looked for {tensor})" for name, _, _, tensor in table)
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    found = f"the tensors of {' and '.join(c.name for c in recognised)}" if recognised else shown
    raise ConversionError(Problem("format", looked_for, found), source=source, hint="see the support table in README.md")


def _entries(format: str) -> list[tuple[str, str, tuple[str, ...], str]]:
    """Rows of FORMATS that a user's name means: all for auto."""
    wanted = str(format).lower().replace("_", "-")
    return [entry for entry in FORMATS if wanted in ("auto", entry[0], *entry[2])]


def _config(config: Any, converter: Converter, file: Path) -> dict[str, Any]:
    """The configuration as JSON values: given, read from a path, or the file of that name beside the source; empty without any."""
    if isinstance(config, Mapping):
        return _json_values(config, "config", file.name)
    if config is None:
        beside = [file.parent / name for name in converter.config_names if (file.parent / name).exists()]
        if not beside:
            return {}
        config = beside[0]
    if not isinstance(config, (str, os.PathLike)):
        raise ConversionError(Problem("config", "a path or a mapping", type(config).__name__), source=file.name)
    value = parse_json(read_bytes(Path(config), ConversionError), str(config), ConversionError)
    if not isinstance(value, dict):
        raise ConversionError(Problem("config", "a JSON object", type(value).__name__), source=str(config))
    return value


def _json_values(values: Mapping[str, Any], what: str, source: str) -> dict[str, Any]:
    """The mapping as JSON would give it back (tuples are lists, NumPy numbers are numbers), without entries that are None."""
    try:
        text = json.dumps({key: value for key, value in values.items() if value is not None}, default=_plain, allow_nan=False)
        result: dict[str, Any] = parse_json(text.encode(), what, ConversionError)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConversionError(Problem(what, "JSON values", str(error)[:120]), source=source) from error
    return result


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__}")


def _check(checkpoint: Checkpoint, source: str) -> None:
    if problems := checkpoint.spec.problems():
        raise ConversionError(problems, source=source, hint="the source describes a model that cannot be")
    validate(checkpoint.spec, checkpoint.weights, source=source)


def _apply_heads(converted: Converted, heads: Any, cut: Callable[..., Checkpoint]) -> Checkpoint:
    """Heads kept by the source's gates and by heads=, scales of both multiplied, the others cut by prune or mask."""
    layers = converted.checkpoint.spec.layers
    kept = converted.kept
    scales = converted.scales or tuple((1.0,) * len(numbers) for numbers in kept)
    if heads is not None:
        choice = read_heads(heads, len(layers), [layer.attention.source_heads for layer in layers])
        factors = [dict(zip(n, choice.scales[i] if choice.scales else (1.0,) * len(n), strict=True)) for i, n in enumerate(choice.kept)]
        pairs = [
            [(head, scale * factor[head]) for head, scale in zip(numbers, row, strict=True) if head in factor]
            for numbers, row, factor in zip(kept, scales, factors, strict=True)
        ]
        kept = tuple(tuple(head for head, _ in row) for row in pairs)
        scales = tuple(tuple(scale for _, scale in row) for row in pairs)
    chosen = cut(converted.checkpoint, kept, scales)
    return replace(chosen, weights=dict(chosen.weights))  # cut once: the source's own tensors are in memory, and can go


def _sha256(files: Sequence[Path]) -> str:
    state = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                state.update(block)
    return state.hexdigest()


def _version() -> str:
    from engine import __version__  # not at the top: engine/__init__ is still running when it imports this

    return __version__
