"""ONNX Runtime and OpenVINO on the graph of `headcount export onnx`, precisions pinned."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.peers.encoder_base import PaddedEncoder
from bench.peers.onnx_runtime import quantized, session
from bench.peers.open_vino import compiled
from bench.suites.encoder.files import EncoderFiles

Inputs = dict[str, np.ndarray]


class GraphEncoder(PaddedEncoder):
    """A graph of named inputs; a subclass compiles it."""

    def __init__(self, files: EncoderFiles, dtype: str, threads: int) -> None:
        super().__init__(files, dtype, threads)
        start = time.perf_counter()
        self._run = self.compile()
        self.prepared = time.perf_counter() - start

    def compile(self) -> Callable[[Inputs], np.ndarray]:
        raise NotImplementedError

    def run(self, ids: np.ndarray, mask: np.ndarray | None) -> Callable[[], np.ndarray]:
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids) if mask is None else mask, "token_type_ids": np.zeros_like(ids)}
        return lambda: self._run(inputs)


class OnnxRuntimeEncoder(GraphEncoder):
    """Every graph optimisation of a session, attention fused with each layer's own heads; int8 by dynamic quantisation."""

    def compile(self) -> Callable[[Inputs], np.ndarray]:
        path = self.files.onnx()
        if self.dtype == "int8":
            path = self.files.once("int8.onnx", lambda target: quantized(path, target, per_channel=True))
        running = session(path, self.threads)

        def run(inputs: Inputs) -> np.ndarray:
            hidden: np.ndarray = running.run(None, inputs)[0]
            return hidden

        return run


class OpenVinoEncoder(GraphEncoder):
    """OpenVINO's CPU plug-in, tuned for latency."""

    def compile(self) -> Callable[[Inputs], np.ndarray]:
        model = compiled(Path(self.files.onnx()), self.dtype, self.threads)
        request = model.create_infer_request()
        return lambda inputs: np.array(request.infer(inputs, share_inputs=True)[model.outputs[0]])
