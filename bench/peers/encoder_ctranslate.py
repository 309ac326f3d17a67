"""CTranslate2, which has one number of heads for all layers: dense models only.

Its specification is filled from our weights, for its converter of BERT needs transformers and gives the same.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.peers.base import Skipped
from bench.suites.encoder.cases import Texts
from bench.suites.encoder.files import EncoderFiles
from engine.checkpoint import Checkpoint, Weights

TYPES = {"float32": "float32", "int8": "int8_float32"}


class CTranslateEncoder:
    """EncoderEngine over ctranslate2.Encoder, which removes padding itself; int8 quantised when the model is written."""

    def __init__(self, files: EncoderFiles, dtype: str, threads: int) -> None:
        import ctranslate2  # type: ignore[import-untyped]

        if any(layer.attention.heads != layer.attention.source_heads for layer in files.checkpoint.spec.layers):
            raise Skipped("CTranslate2 has one number of heads for all layers: dense models only")
        start = time.perf_counter()
        path = files.once(f"ctranslate2-{dtype}", lambda target: write(files.checkpoint, target, dtype))
        self._encoder = ctranslate2.Encoder(str(path), device="cpu", compute_type=TYPES[dtype], inter_threads=1, intra_threads=threads)
        self.prepared = time.perf_counter() - start

    def call(self, texts: Texts) -> Callable[[], np.ndarray]:
        ids = [row.tolist() for row in texts.ids]
        return lambda: np.asarray(self._encoder.forward_batch(ids).last_hidden_state)

    def hidden(self, texts: Texts) -> np.ndarray:
        return texts.visible(self.call(texts)())


def write(checkpoint: Checkpoint, target: Path, dtype: str) -> None:
    """A BERT as a directory of CTranslate2, whole or not at all."""
    from ctranslate2.specs import common_spec, transformer_spec  # type: ignore[import-untyped]

    spec, weights = checkpoint.spec, {name: np.array(array) for name, array in checkpoint.weights.items()}  # it quantises in place
    encoder = transformer_spec.TransformerEncoderSpec(
        len(spec.layers),
        spec.layers[0].attention.heads,
        pre_norm=False,
        activation=common_spec.Activation.GELU,
        layernorm_embedding=True,
        num_source_embeddings=2,
        embeddings_merge=common_spec.EmbeddingsMerge.ADD,
    )
    encoder.scale_embeddings = False
    encoder.embeddings[0].weight, encoder.embeddings[1].weight = weights["embedding.0"], weights["embedding.token_types"]
    encoder.position_encodings.encodings = weights["embedding.positions"]
    _norm(encoder.layernorm_embedding, weights, "embedding.norm")
    for index, layer in enumerate(encoder.layer):
        ours = f"layers.{index}."
        _linear(layer.self_attention.linear[0], weights, [f"{ours}attention.{part}" for part in ("query", "key", "value")])
        _linear(layer.self_attention.linear[1], weights, [f"{ours}attention.output"])
        _norm(layer.self_attention.layer_norm, weights, f"{ours}attention_norm")
        _linear(layer.ffn.linear_0, weights, [f"{ours}feed_forward.up"])
        _linear(layer.ffn.linear_1, weights, [f"{ours}feed_forward.down"])
        _norm(layer.ffn.layer_norm, weights, f"{ours}feed_forward_norm")
    model = transformer_spec.TransformerEncoderModelSpec(encoder, pooling_layer=False)
    model.register_vocabulary([f"token{index}" for index in range(spec.vocab)])
    model.config.unk_token, model.config.layer_norm_epsilon = "token0", spec.layers[0].norm_eps
    model.validate()
    model.optimize(quantization=TYPES[dtype])
    temporary = target.with_suffix(".new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    model.save(str(temporary))
    temporary.rename(target)


def _linear(spec: object, weights: Weights, names: list[str]) -> None:
    """Matrices below one another and their biases."""
    spec.weight = np.concatenate([weights[name] for name in names])  # type: ignore[attr-defined]
    spec.bias = np.concatenate([weights[f"{name}_bias"] for name in names])  # type: ignore[attr-defined]


def _norm(spec: object, weights: Weights, name: str) -> None:
    spec.gamma, spec.beta = weights[name], weights[f"{name}_bias"]  # type: ignore[attr-defined]
