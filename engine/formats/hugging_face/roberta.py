"""RoBERTa (arXiv 1907.11692) and those of its layout: XLM-R (1911.02116), CamemBERT (1911.03894)."""

from __future__ import annotations

from functools import partial

from engine.formats.hugging_face.encoder import encoder
from engine.formats.hugging_face.family import Family
from engine.formats.hugging_face.tokenizer import byte_pair_files, unigram_files

FAMILY = Family(
    "roberta",
    pads=True,
    masked=("lm_head.dense", "lm_head.layer_norm", "lm_head.bias", "lm_head.decoder"),
    masked_activation="gelu",
    pooled=("classifier.dense", "classifier.out_proj", "tanh"),
)
ROBERTA = encoder("Roberta", FAMILY, partial(byte_pair_files, roberta=True))
XLM_ROBERTA = encoder("XLMRoberta", FAMILY, partial(unigram_files, camembert=False))
CAMEMBERT = encoder("Camembert", FAMILY, partial(unigram_files, camembert=True))
