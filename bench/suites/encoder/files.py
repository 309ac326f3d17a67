"""An encoder in every layout its peers read, each written when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from engine import checkpoint as checkpoints
from engine.checkpoint import Checkpoint
from engine.export.hugging_face import export_hf
from engine.export.onnx import export_onnx


class EncoderFiles:
    """Files of one checkpoint in a folder; every path stands when it is returned."""

    def __init__(self, checkpoint: Checkpoint, folder: Path) -> None:
        self.checkpoint = checkpoint
        self.folder = folder

    def engine(self) -> Path:
        """Our own directory."""
        return self.once("engine", lambda path: checkpoints.save(self.checkpoint, path))

    def hugging_face(self) -> Path:
        """What transformers 4 writes, as `headcount export hf` writes it."""
        return self.once("hf", lambda path: export_hf(self.engine(), path))

    def onnx(self) -> Path:
        """The graph of `headcount export onnx`."""
        return self.once("model.onnx", lambda path: export_onnx(self.engine(), path))

    def once(self, name: str, write: Callable[[Path], object]) -> Path:
        """The file or directory of that name, written where there is none."""
        path = self.folder / name
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write(path)
        return path
