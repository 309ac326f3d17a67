"""Small random Hugging Face directories of every family and task, dense or with heads cut out, as transformers 4 and 5 write them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

Shapes = dict[str, tuple[int, ...]]
CLASSES = {"bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta", "camembert": "Camembert", "electra": "Electra"}
CLASSES |= {"distilbert": "DistilBert", "gpt2": "GPT2"}
PREFIXES = {"roberta": "roberta", "xlm-roberta": "roberta", "camembert": "roberta", "gpt2": "transformer"}  # of others their own name
LABELS = 5
OFTEN = 0.3  # spread of the numbers: scores differ by several units, every term weighs


@dataclass
class Source:
    """config as in config.json, tensors dense; heads [layers, heads] of ones."""

    config: dict[str, Any]
    tensors: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def layers(self) -> int:
        return int(self.config.get("num_hidden_layers") or self.config.get("n_layers") or self.config["n_layer"])

    @property
    def heads(self) -> int:
        return int(self.config.get("num_attention_heads") or self.config.get("n_heads") or self.config["n_head"])

    def mask(self, pruned: Mapping[int, Sequence[int]]) -> np.ndarray:
        mask = np.ones((self.layers, self.heads), np.float32)
        for layer, gone in pruned.items():
            mask[layer, list(gone)] = 0
        return mask

    def write(self, directory: Path, pruned: Mapping[int, Sequence[int]] | None = None, **changes: Any) -> Path:
        """config.json and model.safetensors, the heads of `pruned` cut out of the tensors; config entries changed, None removes one."""
        directory.mkdir(parents=True, exist_ok=True)
        config = {name: value for name, value in {**self.config, **changes}.items() if value is not None}
        (directory / "config.json").write_text(json.dumps(config))
        save_file(self.pruned(pruned or {}), directory / "model.safetensors", {"format": "pt"})
        return directory

    def pruned(self, pruned: Mapping[int, Sequence[int]]) -> dict[str, np.ndarray]:
        """The tensors without some heads' rows and columns."""
        cut = dict(self.tensors)
        for layer, gone in pruned.items():
            for name in list(cut):
                if f".layer.{layer}.attention." in f".{name}" or f".h.{layer}.attn." in f".{name}":
                    cut[name] = np.ascontiguousarray(_without(name, cut[name], gone, self.heads))
        return cut


def _without(name: str, array: np.ndarray, gone: Sequence[int], heads: int) -> np.ndarray:
    if "c_attn" in name:
        width = array.shape[-1] // 3
        return np.delete(array, [b * width + c for b in range(3) for c in _columns(gone, width, heads)], -1)
    if "c_proj.weight" in name:
        return np.delete(array, _columns(gone, array.shape[0], heads), 0)
    if "attention.output.dense.weight" in name or "out_lin.weight" in name:
        return np.delete(array, _columns(gone, array.shape[1], heads), 1)
    if any(part in name for part in (".query.", ".key.", ".value.", "q_lin", "k_lin", "v_lin")):
        return np.delete(array, _columns(gone, array.shape[0], heads), 0)
    return array


def _columns(gone: Sequence[int], width: int, heads: int) -> list[int]:
    size = width // heads
    return [head * size + i for head in gone for i in range(size)]


def encoder(kind: str = "bert", task: str = "ForTokenClassification", *, seed: int = 0, **changes: Any) -> Source:
    """changes: entries of the configuration. layers 3, 3 heads of 4, width 10, 41 words, 23 positions."""
    d, heads, layers, width = 12, 3, 3, 10
    positions, vocab = 23, 41
    if kind == "distilbert":
        config = {"dim": d, "n_heads": heads, "n_layers": layers, "hidden_dim": width, "activation": "gelu", "sinusoidal_pos_embds": False}
    else:
        config = {"hidden_size": d, "num_attention_heads": heads, "num_hidden_layers": layers, "intermediate_size": width}
        config |= {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "type_vocab_size": 2 if kind in ("bert", "electra") else 1}
        config |= {"embedding_size": d} if kind == "electra" else {}
    pad = 0 if kind in ("bert", "distilbert", "electra") else 1
    config |= {"max_position_embeddings": positions, "vocab_size": vocab, "pad_token_id": pad, "model_type": kind}
    config |= {"architectures": [CLASSES[kind] + task], "id2label": {str(i): f"L{i}" for i in range(LABELS)}, "dtype": "float32"}
    if task == "ForQuestionAnswering":
        del config["id2label"]  # it has two, of its own
    config |= changes
    source = Source(config)
    source.tensors = _numbers(_encoder_shapes(kind, task, config), seed)
    return source


def _encoder_shapes(kind: str, task: str, config: Mapping[str, Any]) -> Shapes:
    d, width = config.get("dim") or config["hidden_size"], config.get("hidden_dim") or config["intermediate_size"]
    p, vocab = PREFIXES.get(kind, kind), config["vocab_size"]
    shapes: Shapes = {f"{p}.embeddings.word_embeddings.weight": (vocab, d)}
    shapes[f"{p}.embeddings.position_embeddings.weight"] = (config["max_position_embeddings"], d)
    if kind != "distilbert":
        shapes[f"{p}.embeddings.token_type_embeddings.weight"] = (config["type_vocab_size"], d)
    shapes |= _norm(f"{p}.embeddings.LayerNorm", d)
    layers = config.get("n_layers") or config["num_hidden_layers"]
    for layer in range(layers):
        if kind == "distilbert":
            at = f"{p}.transformer.layer.{layer}."
            for name in ("q_lin", "k_lin", "v_lin", "out_lin"):
                shapes |= _dense(f"{at}attention.{name}", d, d)
            shapes |= _norm(at + "sa_layer_norm", d) | _dense(at + "ffn.lin1", width, d) | _dense(at + "ffn.lin2", d, width)
            shapes |= _norm(at + "output_layer_norm", d)
        else:
            at = f"{p}.encoder.layer.{layer}."
            for name in ("self.query", "self.key", "self.value", "output.dense"):
                shapes |= _dense(f"{at}attention.{name}", d, d)
            shapes |= _norm(at + "attention.output.LayerNorm", d) | _dense(at + "intermediate.dense", width, d)
            shapes |= _dense(at + "output.dense", d, width) | _norm(at + "output.LayerNorm", d)
    if task == "Model":
        return {name.removeprefix(f"{p}."): shape for name, shape in shapes.items()}
    return shapes | _head_shapes(kind, task, d, vocab, bool(config.get("tie_word_embeddings", True)))


def _head_shapes(kind: str, task: str, d: int, vocab: int, tied: bool) -> Shapes:
    if task == "ForTokenClassification":
        return _dense("classifier", LABELS, d)
    if task == "ForQuestionAnswering":
        return _dense("qa_outputs", 2, d)
    if task == "ForSequenceClassification":
        if kind == "bert":
            return _dense("bert.pooler.dense", d, d) | _dense("classifier", LABELS, d)
        if kind == "distilbert":
            return _dense("pre_classifier", d, d) | _dense("classifier", LABELS, d)
        return _dense("classifier.dense", d, d) | _dense("classifier.out_proj", LABELS, d)
    names = {
        "bert": (
            "cls.predictions.transform.dense",
            "cls.predictions.transform.LayerNorm",
            "cls.predictions.bias",
            "cls.predictions.decoder",
        ),
        "distilbert": ("vocab_transform", "vocab_layer_norm", "vocab_projector.bias", "vocab_projector"),
        "electra": ("generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head.bias", "generator_lm_head"),
    }
    dense, norm, bias, decoder = names.get(kind, ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias", "lm_head.decoder"))
    shapes = _dense(dense, d, d) | _norm(norm, d) | {bias: (vocab,)}
    return shapes if tied else shapes | {f"{decoder}.weight": (vocab, d)}


def gpt2(*, seed: int = 0, **changes: Any) -> Source:
    """2 layers, 3 heads of 4, 37 words, 29 positions."""
    d, layers, vocab, positions = 12, 2, 37, 29
    config = {"n_embd": d, "n_head": 3, "n_layer": layers, "n_positions": positions, "n_inner": None, "vocab_size": vocab}
    config |= {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
    config |= changes
    shapes: Shapes = {"transformer.wte.weight": (vocab, d), "transformer.wpe.weight": (positions, d)}
    for layer in range(layers):
        at = f"transformer.h.{layer}."
        shapes |= _norm(at + "ln_1", d) | _norm(at + "ln_2", d)
        for name, size, into in (("attn.c_attn", d, 3 * d), ("attn.c_proj", d, d), ("mlp.c_fc", d, 4 * d), ("mlp.c_proj", 4 * d, d)):
            shapes |= {f"{at}{name}.weight": (size, into), f"{at}{name}.bias": (into,)}
    shapes |= _norm("transformer.ln_f", d)
    return Source(config, _numbers(shapes, seed))


def _dense(name: str, rows: int, columns: int) -> Shapes:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _norm(name: str, size: int) -> Shapes:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def _numbers(shapes: Shapes, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    tensors = {name: (OFTEN * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
    for name, array in tensors.items():
        if name.endswith("weight") and array.ndim == 1:
            tensors[name] = array + np.float32(1)
    return tensors
