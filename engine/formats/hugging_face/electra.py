"""ELECTRA (arXiv 2003.10555)."""

from __future__ import annotations

from engine.formats.hugging_face.encoder import encoder
from engine.formats.hugging_face.family import Family
from engine.formats.hugging_face.tokenizer import word_piece_files

FAMILY = Family(
    "electra",
    masked=("generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head.bias", "generator_lm_head"),
    masked_activation="gelu",
    pooled=("classifier.dense", "classifier.out_proj", "gelu"),
    discriminates=True,
)
ELECTRA = encoder("Electra", FAMILY, word_piece_files)
