"""ONNX Runtime on the exported layers: float32, or int8 by its dynamic quantisation of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.exported import ExportedRunner, Graph


class OnnxRuntimeRunner(ExportedRunner):
    """Runner over ONNX Runtime sessions with every graph optimisation."""

    def compiled(self, path: Path) -> Graph:
        running = session(quantized(path, path.with_name("int8.onnx")) if self.dtype == "int8" else path, self.threads)
        names = [value.name for value in running.get_inputs()]

        def run(arguments: list[np.ndarray]) -> list[np.ndarray]:
            found: list[np.ndarray] = running.run(None, dict(zip(names, arguments, strict=True)))
            return found

        return run


def session(path: Path, threads: int) -> Any:
    """The graph with every optimisation, on so many threads that rest between calls."""
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")  # not into the next engine's turn
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def quantized(path: Path, target: Path, *, per_channel: bool = False) -> Path:
    """The graph with the constant side of every matrix product in int8; scales per column fail on products of several heads."""
    from onnxruntime.quantization import QuantType, quantize_dynamic  # type: ignore[import-untyped]

    quantize_dynamic(path, target, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"], per_channel=per_channel)
    return target
