"""DistilBERT (arXiv 1910.01108)."""

from __future__ import annotations

from engine.formats.hugging_face.encoder import encoder
from engine.formats.hugging_face.family import EMBEDDINGS, Family
from engine.formats.hugging_face.tokenizer import word_piece_files

LAYER = {
    "attention.query": "attention.q_lin",
    "attention.key": "attention.k_lin",
    "attention.value": "attention.v_lin",
    "attention.output": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "feed_forward.up": "ffn.lin1",
    "feed_forward.down": "ffn.lin2",
    "feed_forward_norm": "output_layer_norm",
}
SETTINGS = {
    "hidden": "dim",
    "layers": "n_layers",
    "heads": "n_heads",
    "width": "hidden_dim",
    "activation": "activation",
    "positions": "max_position_embeddings",
    "vocab": "vocab_size",
}
FAMILY = Family(
    "distilbert",
    layers="transformer.layer.",
    embeddings={name: theirs for name, theirs in EMBEDDINGS.items() if name != "token_types"},
    layer=LAYER,
    settings=SETTINGS,
    masked=("vocab_transform", "vocab_layer_norm", "vocab_projector.bias", "vocab_projector"),
    pooled=("pre_classifier", "classifier", "relu"),
)
DISTILBERT = encoder("DistilBert", FAMILY, word_piece_files)
