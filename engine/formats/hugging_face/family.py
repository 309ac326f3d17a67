"""What the encoder families call their tensors and settings: a Family per layout, and ours → theirs for a whole model.

Layouts as written by transformers 4 and 5 (github.com/huggingface/transformers, models/ of those names).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.spec import Activation, Labels, ModelSpec, Pooler, Vocabulary

EMBEDDINGS = {  # ours → theirs, below the prefix; absent ones are not part of the family
    "words": "embeddings.word_embeddings.weight",
    "positions": "embeddings.position_embeddings.weight",
    "token_types": "embeddings.token_type_embeddings.weight",
    "norm": "embeddings.LayerNorm",
}
LAYER = {  # ours → theirs, below a layer; each has .weight and .bias
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_forward.up": "intermediate.dense",
    "feed_forward.down": "output.dense",
    "feed_forward_norm": "output.LayerNorm",
}
SETTINGS = {  # ours → their name in config.json
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "width": "intermediate_size",
    "activation": "hidden_act",
    "positions": "max_position_embeddings",
    "token_types": "type_vocab_size",
    "vocab": "vocab_size",
    "norm_eps": "layer_norm_eps",
}


@dataclass(frozen=True)
class Family:
    """One layout of encoders. prefix: of the model inside a task model; pads: positions skip the pad token (RoBERTa)."""

    prefix: str
    layers: str = "encoder.layer."
    embeddings: dict[str, str] = field(default_factory=lambda: EMBEDDINGS)
    layer: dict[str, str] = field(default_factory=lambda: LAYER)
    settings: dict[str, str] = field(default_factory=lambda: SETTINGS)
    pads: bool = False
    norm_eps: float = 1e-12  # where the configuration does not say
    masked: tuple[str, str, str, str] = (  # of the masked head: dense, norm, bias, decoder
        "cls.predictions.transform.dense",
        "cls.predictions.transform.LayerNorm",
        "cls.predictions.bias",
        "cls.predictions.decoder",
    )
    masked_activation: Activation | None = None  # of the masked head, where it is not the layers'
    pooled: tuple[str, str, Pooler] = ("bert.pooler.dense", "classifier", "tanh")  # of sequence classification: dense, labels, activation
    discriminates: bool = False  # pre-trained to tell replaced tokens, not to predict words

    def names(self, spec: ModelSpec, architecture: str) -> dict[str, str]:
        """Ours → theirs for every tensor of a model, written under the class name `architecture`."""
        prefix = f"{self.prefix}." if spec.task != "hidden" else ""
        names = {
            "embedding.0": prefix + self.embeddings["words"],
            "embedding.positions": prefix + self.embeddings["positions"],
            **weight_and_bias("embedding.norm", prefix + self.embeddings["norm"]),
        }
        if "token_types" in self.embeddings:
            names["embedding.token_types"] = prefix + self.embeddings["token_types"]
        for index in range(len(spec.layers)):
            for ours, theirs in self.layer.items():
                names |= weight_and_bias(f"layers.{index}.{ours}", f"{prefix}{self.layers}{index}.{theirs}")
        return names | self._head_names(spec, architecture)

    def _head_names(self, spec: ModelSpec, architecture: str) -> dict[str, str]:
        if isinstance(spec.head, Labels):
            labels = "qa_outputs" if architecture.endswith("ForQuestionAnswering") else "classifier"
            if not spec.head.pooled:
                return weight_and_bias("head.labels", labels)
            dense, classes, _ = self.pooled
            return weight_and_bias("head.pooler", dense) | weight_and_bias("head.labels", classes)
        if not isinstance(spec.head, Vocabulary):
            return {}
        dense, norm, bias, decoder = self.masked
        names = weight_and_bias("head.transform", dense) | weight_and_bias("head.transform_norm", norm) | {"head.0.bias": bias}
        return names if spec.head.clusters[0].tied else names | {"head.0": f"{decoder}.weight"}


def weight_and_bias(ours: str, theirs: str) -> dict[str, str]:
    """Ours → theirs for a weight and its bias."""
    return {ours: f"{theirs}.weight", f"{ours}_bias": f"{theirs}.bias"}
