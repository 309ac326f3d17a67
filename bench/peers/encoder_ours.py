"""Our own engine as a user runs it: engine.load and Model.encode, lists of ids in, padding never computed."""

from __future__ import annotations

from functools import partial

import numpy as np

import engine
from bench.peers.encoder_base import Call
from bench.suites.encoder.cases import Texts
from bench.suites.encoder.files import EncoderFiles


class OurEncoder:
    """EncoderEngine over backend cpu; int8 is float32 with its weights quantised."""

    prepared = 0.0

    def __init__(self, files: EncoderFiles, dtype: str, threads: int) -> None:
        quantization = "int8" if dtype == "int8" else None
        self.model = engine.load(
            files.engine(), backend="cpu", dtype="float32" if quantization else dtype, quantization=quantization, threads=threads
        )

    def call(self, texts: Texts) -> Call:
        return partial(self.model.encode, list(texts.ids))

    def hidden(self, texts: Texts) -> np.ndarray:
        return texts.visible(self.model.encode(list(texts.ids)))
