"""BERT, RoBERTa / XLM-R, ELECTRA, DistilBERT and GPT-2 on their own tensors, a sequence and a head at a time, heads masked, not cut.

Forward passes: arXiv 1810.04805, 1907.11692, 2003.10555, 1910.01108, and GPT-2 as described by its configuration (pre-norm, causal).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Tensors = Mapping[str, np.ndarray]

BERT = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense", "attention.output.LayerNorm")
BERT_REST = ("intermediate.dense", "output.dense", "output.LayerNorm")
DISTIL = ("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin", "sa_layer_norm")
DISTIL_REST = ("ffn.lin1", "ffn.lin2", "output_layer_norm")


def hidden_states(
    config: Mapping[str, Any], tensors: Tensors, ids: Sequence[int], seen: Sequence[int], types: Sequence[int], heads: np.ndarray
) -> np.ndarray:
    """[T, hidden] float64 of one sequence, also where `seen` is 0; heads [layers, heads] multiplies each head's output."""
    kind = config["model_type"]
    w = {name.removeprefix(f"{_prefix(kind)}."): np.asarray(array, np.float64) for name, array in tensors.items()}
    eps = config.get("layer_norm_eps", 1e-12)
    places = list(range(len(ids)))
    if kind in ("roberta", "xlm-roberta", "camembert"):
        pad = config["pad_token_id"]
        count, places = 0, []
        for token in ids:
            count += token != pad
            places.append(pad + count if token != pad else pad)
    rows = []
    for token, place, kind_of_token in zip(ids, places, types, strict=True):
        row = w["embeddings.word_embeddings.weight"][token] + w["embeddings.position_embeddings.weight"][place]
        if kind != "distilbert":
            row = row + w["embeddings.token_type_embeddings.weight"][kind_of_token]
        rows.append(_norm(w, "embeddings.LayerNorm", row, eps))
    h = np.array(rows)
    names, rest, prefix = (DISTIL, DISTIL_REST, "transformer.layer") if kind == "distilbert" else (BERT, BERT_REST, "encoder.layer")
    activation = activation_of(config["activation" if kind == "distilbert" else "hidden_act"])
    for layer in range(heads.shape[0]):
        at = f"{prefix}.{layer}."
        q, k, v = (_linear(w, at + name, h) for name in names[:3])
        visible = np.tile(np.asarray(seen, bool), (len(ids), 1))
        h = _norm(w, at + names[4], h + _linear(w, at + names[3], _attend(q, k, v, visible, heads[layer])), eps)
        inner = activation(_linear(w, at + rest[0], h))
        h = _norm(w, at + rest[2], h + _linear(w, at + rest[1], inner), eps)
    return h


def task_logits(config: Mapping[str, Any], tensors: Tensors, h: np.ndarray) -> np.ndarray:
    """What the task head named in `architectures` makes of the hidden states [T, hidden]."""
    kind, task = config["model_type"], config["architectures"][0]
    w = {name: np.asarray(array, np.float64) for name, array in tensors.items()}
    eps = config.get("layer_norm_eps", 1e-12)
    if task.endswith("ForTokenClassification"):
        return _linear(w, "classifier", h)
    if task.endswith("ForQuestionAnswering"):
        return _linear(w, "qa_outputs", h)
    if task.endswith("ForSequenceClassification"):
        if kind == "bert":
            return _linear(w, "classifier", np.tanh(_linear(w, "bert.pooler.dense", h[:1])))[0]
        if kind == "distilbert":
            return _linear(w, "classifier", np.maximum(_linear(w, "pre_classifier", h[:1]), 0))[0]
        activation = activation_of("gelu") if kind == "electra" else np.tanh
        return _linear(w, "classifier.out_proj", activation(_linear(w, "classifier.dense", h[:1])))[0]
    words = w[f"{_prefix(kind)}.embeddings.word_embeddings.weight"]
    if kind == "bert":
        dense, norm, bias, decoder = "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias", ""
        activation = activation_of(config["hidden_act"])
        decoder = "cls.predictions.decoder.weight"
    elif kind == "distilbert":
        dense, norm, bias, decoder = "vocab_transform", "vocab_layer_norm", "vocab_projector.bias", "vocab_projector.weight"
        activation = activation_of(config["activation"])
    elif kind == "electra":
        dense, norm, bias, decoder = "generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head.bias", ""
        activation, decoder = activation_of("gelu"), "generator_lm_head.weight"
    else:
        dense, norm, bias, decoder = "lm_head.dense", "lm_head.layer_norm", "lm_head.bias", "lm_head.decoder.weight"
        activation = activation_of("gelu")
    rows = words if config.get("tie_word_embeddings", True) else w[decoder]
    own = decoder.replace(".weight", ".bias")  # transformers 5 stores both biases of an untied decoder and adds this one
    return _norm(w, norm, activation(_linear(w, dense, h)), eps) @ rows.T + w[own if own in w else bias]


def gpt2_logits(config: Mapping[str, Any], tensors: Tensors, ids: Sequence[int], heads: np.ndarray) -> np.ndarray:
    """[T, vocab] float64; Conv1D weights are [in, out]."""
    w = {name.removeprefix("transformer."): np.asarray(array, np.float64) for name, array in tensors.items()}
    eps = config["layer_norm_epsilon"]
    h = np.array([w["wte.weight"][token] + w["wpe.weight"][place] for place, token in enumerate(ids)])
    size = h.shape[1] // config["n_head"]
    visible = np.tril(np.ones((len(ids), len(ids)), bool))
    for layer in range(heads.shape[0]):
        at = f"h.{layer}."
        x = _norm(w, at + "ln_1", h, eps) @ w[at + "attn.c_attn.weight"] + w[at + "attn.c_attn.bias"]
        q, k, v = np.split(x, 3, axis=1)
        if config.get("scale_attn_by_inverse_layer_idx"):
            q = q / (layer + 1)
        assert q.shape[1] == size * heads.shape[1]
        mixed = _attend(q, k, v, visible, heads[layer])
        h = h + mixed @ w[at + "attn.c_proj.weight"] + w[at + "attn.c_proj.bias"]
        inner = _norm(w, at + "ln_2", h, eps) @ w[at + "mlp.c_fc.weight"] + w[at + "mlp.c_fc.bias"]
        h = h + activation_of(config["activation_function"])(inner) @ w[at + "mlp.c_proj.weight"] + w[at + "mlp.c_proj.bias"]
    rows = w["wte.weight"] if config.get("tie_word_embeddings", True) else w["lm_head.weight"]
    return _norm(w, "ln_f", h, eps) @ rows.T


def activation_of(name: str) -> Callable[[np.ndarray], np.ndarray]:
    if name == "relu":
        return lambda x: np.maximum(x, 0)
    if name == "gelu":
        return lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    if name in ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"):
        return lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if name == "quick_gelu":
        return lambda x: x / (1 + np.exp(-1.702 * x))
    return lambda x: x / (1 + np.exp(-x))  # silu


def _attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, visible: np.ndarray, heads: np.ndarray) -> np.ndarray:
    """q, k, v [T, heads · size], visible [T, T] → [T, heads · size], each head times its entry of `heads`."""
    size = q.shape[1] // len(heads)
    out = np.zeros_like(q)
    for h, factor in enumerate(heads):
        columns = slice(h * size, (h + 1) * size)
        for i in range(len(q)):
            scores = np.where(visible[i], k[:, columns] @ q[i, columns] / math.sqrt(size), -np.inf)
            shares = np.exp(scores - scores.max())
            out[i, columns] = factor * (shares / shares.sum()) @ v[:, columns]
    return out


def _linear(w: Tensors, name: str, x: np.ndarray) -> np.ndarray:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def _norm(w: Tensors, name: str, x: np.ndarray, eps: float) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


def _prefix(kind: str) -> str:
    return {"xlm-roberta": "roberta", "camembert": "roberta"}.get(kind, kind)
