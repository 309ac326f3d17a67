"""Checkpoint → the directory transformers 4 writes: config.json with `pruned_heads`, model.safetensors, tokenizer.json and its settings.

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

from engine.checkpoint import Checkpoint, destination
from engine.checkpoint.new_directory import new_directory
from engine.checkpoint.tensor_file import TENSORS, write_tensors
from engine.checkpoint.tokenizer import Tokenizer
from engine.errors import CheckpointError, Problem, Unsupported
from engine.formats.hugging_face.files import names_model_type
from engine.formats.hugging_face.names import ENDINGS, FAMILIES, HEAD_SETTINGS, Family
from engine.spec import Labels, ModelSpec, Vocabulary

CONFIG, TOKENIZER, TOKENIZER_CONFIG = "config.json", "tokenizer.json", "tokenizer_config.json"
TOLD_AGAIN = {  # part of a tokenizer.json → its settings by their names in tokenizer_config.json, whose defaults would replace them
    "BertNormalizer": {"lowercase": "do_lower_case", "strip_accents": "strip_accents", "handle_chinese_chars": "tokenize_chinese_chars"},
    "ByteLevel": {"add_prefix_space": "add_prefix_space"},
}
TASK_ENDINGS = {task: ending for ending, task in reversed(ENDINGS.items())}  # the first ending of each task
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
                settings = {"model_max_length": checkpoint.spec.embedding.most_tokens, **_tokenizer_settings(checkpoint.tokenizer)}
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
    if checkpoint.provenance.get("format") != "huggingface" or not isinstance(given, Mapping) or kind not in (*FAMILIES, "gpt2"):
        found = str(checkpoint.provenance.get("format", "an unknown format"))
        raise Unsupported(Problem("model", "one converted from a Hugging Face directory, whose layout it is written in", found))
    if problems := _problems(spec):
        raise Unsupported(problems, hint="transformers 4 has one head size and one feed-forward width for all layers")
    removed = {
        str(index): [head for head in range(layer.attention.source_heads) if head not in layer.attention.kept]
        for index, layer in enumerate(spec.layers)
    }
    config = {name: value for name, value in given.items() if name not in HEAD_SETTINGS}
    config["pruned_heads"] = {index: heads for index, heads in removed.items() if heads}
    if not config["pruned_heads"]:
        del config["pruned_heads"]
    trained = checkpoint.provenance.get("labels") if isinstance(spec.head, Labels) else None  # of a head that was trained here
    if isinstance(trained, list):
        config.pop("num_labels", None)
        config["id2label"] = {str(index): name for index, name in enumerate(trained)}
        config["label2id"] = {name: index for index, name in enumerate(trained)}
    config["architectures"] = [_architecture(spec, config, trained is not None)]
    weights = dict(checkpoint.weights)
    for index, layer in enumerate(spec.layers):
        _write_out(weights, index, layer.attention.heads * layer.attention.head_dim, spec.hidden)
    if kind == "gpt2":
        return config, _gpt2(spec, weights)
    return config, _encoder(FAMILIES[str(kind)], spec, weights, config["architectures"][0])


def _tokenizer_settings(text: str) -> dict[str, Any]:
    """What transformers would otherwise set by its own defaults, lower case for every BERT."""
    parts = json.loads(Tokenizer.from_json(text, source=TOKENIZER).to_json())
    steps = [parts.get("normalizer"), parts.get("pre_tokenizer")]
    steps += [inner for step in steps if step for name in ("normalizers", "pretokenizers") for inner in step.get(name, ())]
    told = [(step, TOLD_AGAIN[step["type"]]) for step in steps if step and step.get("type") in TOLD_AGAIN]
    return {theirs: step.get(name) for step, names in told for name, theirs in names.items()}


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


def _architecture(spec: ModelSpec, config: Mapping[str, Any], trained: bool) -> str:
    """The source's own where its head is written, all of it; else the one of the task."""
    given = (config.get("architectures") or [""])[0]
    if spec.task == "causal_lm":
        return "GPT2LMHeadModel"
    ending = max((ending for ending in ENDINGS if given.endswith(ending)), key=len, default="")
    if ending and ENDINGS[ending] == spec.task and ending != "ForPreTraining" and not trained:
        return str(given)
    classes = {"xlm-roberta": "XLMRoberta", "camembert": "Camembert"}
    stem = given.removesuffix(ending) or classes.get(config["model_type"], "") or FAMILIES[config["model_type"]].classes
    return stem + TASK_ENDINGS[spec.task]


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


def _encoder(family: Family, spec: ModelSpec, weights: Tensors, architecture: str) -> Tensors:
    prefix = f"{family.prefix}." if spec.task != "hidden" else ""
    names = {
        "embedding.0": prefix + family.embeddings["words"],
        "embedding.positions": prefix + family.embeddings["positions"],
        "embedding.norm": f"{prefix}{family.embeddings['norm']}.weight",
        "embedding.norm_bias": f"{prefix}{family.embeddings['norm']}.bias",
    }
    if "token_types" in family.embeddings:
        names["embedding.token_types"] = prefix + family.embeddings["token_types"]
    for index in range(len(spec.layers)):
        for ours, theirs in family.layer.items():
            names |= _both(f"layers.{index}.{ours}", f"{prefix}{family.layers}{index}.{theirs}")
    return {theirs: weights[ours] for ours, theirs in (names | _head(family, spec, architecture)).items()}


def _head(family: Family, spec: ModelSpec, architecture: str) -> dict[str, str]:
    """Ours → theirs for the tensors of the task's head."""
    if isinstance(spec.head, Labels):
        labels = "qa_outputs" if architecture.endswith("ForQuestionAnswering") else "classifier"
        if not spec.head.pooled:
            return _both("head.labels", labels)
        dense, classes, _ = family.pooled
        return _both("head.pooler", dense) | _both("head.labels", classes)
    if not isinstance(spec.head, Vocabulary):
        return {}
    dense, norm, bias, decoder = family.masked
    names = _both("head.transform", dense) | _both("head.transform_norm", norm) | {"head.0.bias": bias}
    return names if spec.head.clusters[0].tied else names | {"head.0": f"{decoder}.weight"}


def _gpt2(spec: ModelSpec, weights: Tensors) -> Tensors:
    """Matrices transposed, query, key and value side by side."""
    tensors = {"transformer.wte.weight": weights["embedding.0"], "transformer.wpe.weight": weights["embedding.positions"]}
    if "head.0" in weights:
        tensors["lm_head.weight"] = weights["head.0"]
    for index in range(len(spec.layers)):
        ours, theirs = f"layers.{index}.", f"transformer.h.{index}."
        parts = [f"{ours}attention.{name}" for name in ("query", "key", "value")]
        tensors[f"{theirs}attn.c_attn.weight"] = np.concatenate([weights[name] for name in parts]).T
        tensors[f"{theirs}attn.c_attn.bias"] = np.concatenate([weights[f"{name}_bias"] for name in parts])
        for name, called in (("attention.output", "attn.c_proj"), ("feed_forward.up", "mlp.c_fc"), ("feed_forward.down", "mlp.c_proj")):
            tensors[f"{theirs}{called}.weight"] = weights[ours + name].T
            tensors[f"{theirs}{called}.bias"] = weights[f"{ours}{name}_bias"]
        for name, called in (("attention_norm", "ln_1"), ("feed_forward_norm", "ln_2")):
            tensors |= {called: weights[name] for name, called in _both(ours + name, theirs + called).items()}
    return tensors | {theirs: weights[ours] for ours, theirs in _both("final_norm", "transformer.ln_f").items()}


def _both(ours: str, theirs: str) -> dict[str, str]:
    return {ours: f"{theirs}.weight", f"{ours}_bias": f"{theirs}.bias"}


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
    ours = {CONFIG, TENSORS, TOKENIZER, TOKENIZER_CONFIG} if names_model_type(None, directory / CONFIG) else set[str]()
    if other := [name for name in names if name not in ours]:
        found = ", ".join(other[:5]) + (", …" if len(other) > 5 else "")
        raise CheckpointError(Problem(str(directory), "an exported directory or an empty one", found), hint=hint)
