"""Tiny encoders and texts: a random one, and one where only known heads carry the label."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from engine.checkpoint import Checkpoint
from engine.spec import Absolute, AttentionSpec, Cluster, Embedding, FeedForward, Labels, LayerSpec, ModelSpec

WORDS = 6  # of each of 4 classes
CLASSES = 4
PLANTED = {(0, 1), (1, 2)}


def tokenizer() -> str:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{index}" for index in range(WORDS * CLASSES))]
    backend = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return str(backend.to_str())


def spec(layers: int = 2, heads: int = 3, head_dim: int = 4, hidden: int = 16, positions: int = 40) -> ModelSpec:
    attention = AttentionSpec(
        source_heads=heads,
        kept=tuple(range(heads)),
        kv_of=tuple(range(heads)),
        head_dim=head_dim,
        position=Absolute(),
        persistent=0,
        causal=False,
        sees_self=True,
        window=None,
        segment=None,
        start="empty",
        spans=None,
        span_ramp=None,
        bias=True,
        output_bias=True,
        scaled=False,
    )
    layer = LayerSpec(attention, FeedForward(6, "gelu", False, True), "layer", False, 1e-5, 0.0)
    vocab = 4 + WORDS * CLASSES
    embedding = Embedding((Cluster(vocab, hidden, False),), 1.0, positions, 0, 1, True)
    return ModelSpec(hidden, vocab, (layer,) * layers, embedding, Labels(CLASSES, False), "token_classification")


def random_model(seed: int = 0, spread: float = 0.3) -> Checkpoint:
    rng = np.random.default_rng(seed)
    weights = {name: (spread * rng.standard_normal(shape)).astype(np.float32) for name, shape in spec().tensors().items()}
    weights |= {name: np.ones_like(w) for name, w in weights.items() if name.endswith("norm")}
    labels = [f"C{index}" for index in range(CLASSES)]
    return Checkpoint(spec(), weights, {"labels": labels}, tokenizer())


def planted_model(seed: int = 1) -> Checkpoint:
    """A word's class is in columns 0–3; head 1 of layer 0 copies classes 0 and 1 into columns 4–7, where alone the labels are read,
    head 2 of layer 1 classes 2 and 3; each attends to tokens of the same class. The other heads write noise into columns 8–15."""
    noise = random_model(seed, 0.2)
    w = {name: array.copy() for name, array in noise.weights.items()}
    w["embedding.0"] *= 0.1
    for word in range(WORDS * CLASSES):
        w["embedding.0"][4 + word, word % CLASSES] = 3.0
    for name in ("embedding.positions", "embedding.token_types", "head.labels", "head.labels_bias"):
        w[name] *= 0.0
    for name, array in w.items():
        if name.endswith("_bias") or "feed_forward.down" in name:
            array *= 0.0
    w["embedding.0"][:, 4:8] = 0.0
    w["head.labels"][:, 4:8] = 4.0 * np.eye(4)
    for layer in range(2):
        w[f"layers.{layer}.attention.output"][:8] = 0.0
    for layer, head in PLANTED:
        rows, prefix = slice(4 * head, 4 * head + 4), f"layers.{layer}.attention."
        for name in ("query", "key", "value"):
            w[prefix + name][rows] = 0.0
        w[prefix + "query"][rows, :4] = w[prefix + "key"][rows, :4] = 3.0 * np.eye(4)
        classes = [0, 1] if layer == 0 else [2, 3]
        for c in classes:
            w[prefix + "value"][4 * head + c, c] = 2.0
        w[prefix + "output"][:, rows] = 0.0
        w[prefix + "output"][4:8, rows] = 2.0 * np.eye(4)
    return Checkpoint(spec(), w, {"labels": [f"C{index}" for index in range(CLASSES)]}, tokenizer())


def write_text(path: Path, sentences: int = 24, seed: int = 0, name: str = "C") -> str:
    """Words and their classes in CoNLL-U, 3 to 9 words a sentence."""
    rng = np.random.default_rng(seed)
    lines = []
    for _ in range(sentences):
        for place, word in enumerate(rng.integers(0, WORDS * CLASSES, rng.integers(3, 10)), start=1):
            lines.append(f"{place}\tw{word}\t_\t{name}{word % CLASSES}" + "\t_" * 6)
        lines.append("")
    path.write_text("\n".join(lines) + "\n")
    return str(path)
