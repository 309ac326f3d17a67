"""One engine that encodes texts: what the gate checks and the clock times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from bench.suites.encoder.cases import Texts
from bench.suites.encoder.files import EncoderFiles

Call = Callable[[], object]


class EncoderEngine(Protocol):
    """Made of (EncoderFiles, dtype, threads). prepared: seconds spent exporting and compiling so far, never part of a sample."""

    prepared: float

    def call(self, texts: Texts) -> Call:
        """What is timed: from the ids, in the layout the engine takes, to the hidden states, in the layout it gives."""
        ...

    def hidden(self, texts: Texts) -> np.ndarray:
        """The same hidden states [tokens, hidden] float32, padding left out."""
        ...


class PaddedEncoder:
    """An EncoderEngine over rectangles; a subclass says how one is run."""

    def __init__(self, files: EncoderFiles, dtype: str, threads: int) -> None:
        self.files, self.dtype, self.threads = files, dtype, threads
        self.prepared = 0.0

    def run(self, ids: np.ndarray, mask: np.ndarray | None) -> Callable[[], np.ndarray]:
        """A call that encodes ids [texts, longest]; mask None where no text is shorter. It gives [texts, longest, hidden]."""
        raise NotImplementedError

    def call(self, texts: Texts) -> Callable[[], np.ndarray]:
        ids, mask = texts.padded()
        return self.run(ids, None if mask.all() else mask)

    def hidden(self, texts: Texts) -> np.ndarray:
        return texts.visible(self.call(texts)())
