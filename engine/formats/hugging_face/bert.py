"""BERT (arXiv 1810.04805)."""

from __future__ import annotations

from engine.formats.hugging_face.encoder import encoder
from engine.formats.hugging_face.family import Family
from engine.formats.hugging_face.tokenizer import word_piece_files

BERT = encoder("Bert", Family("bert"), word_piece_files)
