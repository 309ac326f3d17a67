"""OpenVINO on the exported layers, its precision pinned: without the hint it takes bfloat16 wherever the processor has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.base import Skipped
from bench.peers.exported import ExportedRunner, Graph

HINTS = {"float32": "f32", "bfloat16": "bf16"}


class OpenVinoRunner(ExportedRunner):
    """Runner over OpenVINO's CPU plug-in, tuned for latency."""

    def compiled(self, path: Path) -> Graph:
        model = compiled(path, self.dtype, self.threads)
        request = model.create_infer_request()

        def run(arguments: list[np.ndarray]) -> list[np.ndarray]:
            found = request.infer(arguments, share_inputs=True)
            return [np.array(found[output]) for output in model.outputs]  # copies: the next call writes the same memory

        return run


def compiled(path: Path, dtype: str, threads: int) -> Any:
    """The graph for the CPU in one precision; raises Skipped where the processor lacks it."""
    import openvino  # type: ignore[import-untyped]

    core = openvino.Core()
    if dtype == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise Skipped("OpenVINO says that this processor has no bfloat16")
    settings = {"INFERENCE_PRECISION_HINT": HINTS[dtype], "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    return core.compile_model(core.read_model(path), "CPU", settings)
