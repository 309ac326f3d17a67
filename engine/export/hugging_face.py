"""A model → the directory transformers 4 writes: config.json with `pruned_heads`, model.safetensors, tokenizer.json and its settings.

Only for models that came from that layout: their own config.json, kept in the provenance, is written back with the heads that are gone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.backends.checks import require_finite
from engine.checkpoint import Checkpoint, destination, require_outside
from engine.checkpoint.new_directory import new_directory
from engine.checkpoint.side_files import SideFiles
from engine.checkpoint.tensor_file import TENSORS, write_tensors
from engine.checkpoint.tokenizer import Tokenizer
from engine.errors import CheckpointError, Problem, Unsupported
from engine.formats.hugging_face.architecture import Architecture
from engine.formats.hugging_face.keys import HEAD_KEYS, HEAD_SIZES
from engine.formats.hugging_face.special_tokens import TOLD_AGAIN, WRITTEN_BACK
from engine.formats.hugging_face.table import ARCHITECTURES
from engine.formats.hugging_face.tokenizer import CLASSES
from engine.formats.open import open_checkpoint
from engine.spec import Labels, ModelSpec

AnyPath = str | os.PathLike[str]
CONFIG, TOKENIZER, TOKENIZER_CONFIG = "config.json", "tokenizer.json", "tokenizer_config.json"
Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class ExportReport:
    """What was written: head numbers removed per layer, and remarks."""

    output_dir: str
    architecture: str
    pruned_heads: dict[str, list[int]]
    tensors: int
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def export_hf(
    path: AnyPath,
    output_dir: AnyPath,
    *,
    config: AnyPath | Mapping[str, Any] | None = None,
    heads: Any = None,
    force: bool = False,
    **options: Any,
) -> ExportReport:
    """Write a model that came from a Hugging Face directory back as transformers 4 writes it, heads cut out and named in `pruned_heads`.

    path: an engine directory or such a source; config, heads, options as for load; force replaces an exported directory. Raises an
    EngineError, and then nothing was written.
    """
    checkpoint = open_checkpoint(path, config=config, heads=heads, **options)
    output = destination(output_dir)
    require_outside(path, output)
    require_finite(checkpoint, str(path))
    return export_hugging_face(checkpoint, output, force=force)


def export_hugging_face(checkpoint: Checkpoint, directory: str | os.PathLike[str], *, force: bool = False) -> ExportReport:
    """Write the layout of transformers 4, whole or not at all; force replaces a directory of that kind.

    Scales of heads are multiplied into the output matrices. Raises Unsupported for a model this layout cannot say, CheckpointError where
    nothing can or may be written.
    """
    target = destination(directory)
    config, tensors = layout(checkpoint)
    _may_write(target, force)
    try:
        with new_directory(target) as temporary:
            write_tensors(temporary / TENSORS, tensors, metadata={"format": "pt"})  # the library refuses files without it
            (temporary / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            if checkpoint.tokenizer is not None:
                (temporary / TOKENIZER).write_text(checkpoint.tokenizer, encoding="utf-8")
                settings = {"model_max_length": checkpoint.spec.embedding.most_tokens, **_tokenizer_settings(checkpoint)}
                (temporary / TOKENIZER_CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{directory}: cannot be written: {error}", hint="nothing was written; choose another output directory"
        ) from error
    empty = [index for index, layer in enumerate(checkpoint.spec.layers) if not layer.attention.heads]
    notes = [f"layers without heads: {', '.join(map(str, empty))}; transformers 4 loads them and fails when it runs"] if empty else []
    return ExportReport(str(directory), config["architectures"][0], config.get("pruned_heads", {}), len(tensors), tuple(notes))


def layout(checkpoint: Checkpoint) -> tuple[dict[str, Any], Tensors]:
    """config.json's value and the tensors by their names there; raises Unsupported with everything that has no place in it."""
    spec, given = checkpoint.spec, checkpoint.provenance.get("config")
    kind = given.get("model_type") if isinstance(given, Mapping) else None
    architecture = ARCHITECTURES.get(kind) if isinstance(kind, str) else None
    of_hugging_face = checkpoint.provenance.get("format") == "huggingface"
    if not of_hugging_face or architecture is None or architecture.write is None or not isinstance(given, Mapping):
        found = str(checkpoint.provenance.get("format", "an unknown format"))
        raise Unsupported(Problem("model", "one converted from a Hugging Face directory, whose layout it is written in", found))
    if problems := _problems(spec):
        raise Unsupported(problems, hint="transformers 4 has one head size and one feed-forward width for all layers")
    removed = {
        str(index): [head for head in range(layer.attention.source_heads) if head not in layer.attention.kept]
        for index, layer in enumerate(spec.layers)
    }
    config = {name: value for name, value in given.items() if name not in (*HEAD_KEYS, *HEAD_SIZES)}
    config["pruned_heads"] = {index: heads for index, heads in removed.items() if heads}
    if not config["pruned_heads"]:
        del config["pruned_heads"]
    trained = checkpoint.provenance.get("labels") if isinstance(spec.head, Labels) else None  # of a head that was trained here
    if isinstance(trained, list):
        config.pop("num_labels", None)
        config["id2label"] = {str(index): name for index, name in enumerate(trained)}
        config["label2id"] = {name: index for index, name in enumerate(trained)}
    config["architectures"] = [_class_name(architecture, spec, config, trained is not None)]
    weights = dict(checkpoint.weights)
    for index, layer in enumerate(spec.layers):
        _write_out(weights, index, layer.attention.heads * layer.attention.head_dim, spec.hidden)
    return config, architecture.write(spec, weights, config["architectures"][0])


def _tokenizer_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """What transformers would otherwise set by its own defaults, lower case and [CLS] for every BERT; roles and the side of padding."""
    parts = json.loads(Tokenizer.from_json(checkpoint.tokenizer or "", source=TOKENIZER).to_json())
    steps = [parts.get("normalizer"), parts.get("pre_tokenizer")]
    steps += [inner for step in steps if step for name in ("normalizers", "pretokenizers") for inner in step.get(name, ())]
    told = [(step, TOLD_AGAIN[step["type"]]) for step in steps if step and step.get("type") in TOLD_AGAIN]
    source = checkpoint.provenance.get("tokenizer")
    written = {name: source[name] for name in WRITTEN_BACK if name in source} if isinstance(source, Mapping) else {}
    if "tokenizer_class" in written and str(written["tokenizer_class"]).removesuffix("Fast") not in CLASSES:
        written["tokenizer_class"] = "PreTrainedTokenizerFast"  # reads the tokenizer.json as it stands, which another class may not
    return {**written, **{theirs: step.get(name) for step, names in told for name, theirs in names.items()}}


def _problems(spec: ModelSpec) -> list[Problem]:
    problems = []
    for index, layer in enumerate(spec.layers):
        a = layer.attention
        if a.source_heads * a.head_dim != spec.hidden:
            expected = f"heads that make up the hidden size {spec.hidden}"
            problems.append(Problem(f"layers.{index}.attention", expected, f"{a.source_heads} × {a.head_dim}"))
        if layer.feed_forward != spec.layers[0].feed_forward:
            problems.append(Problem(f"layers.{index}.feed_forward", "the one of layer 0", str(layer.feed_forward)))
    return problems


def _class_name(architecture: Architecture, spec: ModelSpec, config: Mapping[str, Any], trained: bool) -> str:
    """The source's own where its head is written, all of it; else the one of the task."""
    given, tasks = (config.get("architectures") or [""])[0], architecture.tasks
    of_task = next(ending for ending, task in tasks.items() if task == spec.task)
    if spec.task == "causal_lm":
        return architecture.classes + of_task
    ending = max((ending for ending in tasks if given.endswith(ending)), key=len, default="")
    if ending and tasks[ending] == spec.task and ending != "ForPreTraining" and not trained:
        return str(given)
    return (given.removesuffix(ending) or architecture.classes) + of_task


def _write_out(weights: Tensors, index: int, rows: int, hidden: int) -> None:
    """Head scales into the output's columns, in float32; matrices of no rows for a layer without heads, as transformers 4 writes them."""
    prefix = f"layers.{index}.attention."
    scale = weights.pop(f"{prefix}head_scale", None)
    if scale is not None:
        output = weights[f"{prefix}output"]
        columns = np.repeat(np.asarray(scale, np.float32), output.shape[1] // len(scale))
        weights[f"{prefix}output"] = (np.asarray(output, np.float32) * columns).astype(output.dtype)
    if not rows:
        dtype = weights[f"{prefix}output_bias"].dtype
        for name in ("query", "key", "value"):
            weights[f"{prefix}{name}"], weights[f"{prefix}{name}_bias"] = np.zeros((0, hidden), dtype), np.zeros(0, dtype)
        weights[f"{prefix}output"] = np.zeros((hidden, 0), dtype)


def _may_write(directory: Path, force: bool) -> None:
    """Raise CheckpointError where something stands that may not be replaced."""
    if not os.path.lexists(directory):
        return
    hint = "choose another output directory"
    if not directory.is_dir():
        raise CheckpointError(Problem(str(directory), "a directory to make", "something else there"), hint=hint)
    names = sorted(os.listdir(directory))
    if names and not force:
        raise CheckpointError(Problem(str(directory), "no directory yet", "one that exists"), hint=f"{hint}, or replace it with --force")
    config = SideFiles(directory).json_or_none(directory / CONFIG)
    exported = isinstance(config, Mapping) and "model_type" in config
    ours = {CONFIG, TENSORS, TOKENIZER, TOKENIZER_CONFIG} if exported else set[str]()
    if other := [name for name in names if name not in ours]:
        found = ", ".join(other[:5]) + (", …" if len(other) > 5 else "")
        raise CheckpointError(Problem(str(directory), "an exported directory or an empty one", found), hint=hint)
