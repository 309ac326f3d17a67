"""The compact layers as one ONNX graph, key and value caches as inputs and outputs, run by ONNX Runtime or OpenVINO."""

from __future__ import annotations

import tempfile
import warnings
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from bench.peers.base import PeerRunner
from bench.peers.plain import PlainStack
from engine.checkpoint import Checkpoint

Graph = Callable[[list[np.ndarray]], list[np.ndarray]]  # hidden and caches → the same after the rows


class ExportedRunner(PeerRunner):
    """Runner that exports and compiles a graph on the first call of each shape; a subclass says by what."""

    def __init__(self, checkpoint: Checkpoint, dtype: str, threads: int) -> None:
        super().__init__(checkpoint, "float32", threads)
        self.dtype = dtype
        self._plain = PlainStack(checkpoint, "float32").eval()
        self._graphs: dict[tuple[int, ...], Graph] = {}

    @abstractmethod
    def compiled(self, path: Path) -> Graph:
        """What runs the ONNX file; the file may be gone afterwards."""

    def start(self, batch: int) -> list[np.ndarray]:
        return [tensor.numpy() for tensor in self._plain.start(batch)]

    def layers(self, hidden: torch.Tensor, state: list[np.ndarray]) -> tuple[torch.Tensor, list[np.ndarray]]:
        shape = tuple(hidden.shape)
        if shape not in self._graphs:
            with self.preparing(), tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "layers.onnx"
                export(self._plain, (hidden, *map(torch.from_numpy, state)), path)
                self._graphs[shape] = self.compiled(path)
        after, *state = self._graphs[shape]([hidden.numpy(), *state])
        return torch.from_numpy(after), state


def export(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...], path: Path) -> None:
    """Write the module as ONNX for arguments of exactly these shapes; inputs in.0, in.1, …, outputs out.0, out.1, …"""
    names = range(len(arguments))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter by tracing is marked as old; it needs one package less and a third of the time
        torch.onnx.export(
            module,
            arguments,
            str(path),
            dynamo=False,
            input_names=[f"in.{i}" for i in names],
            output_names=[f"out.{i}" for i in names],
        )
