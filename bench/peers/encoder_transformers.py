"""transformers 4, the last with pruned heads, in the environment of `make bench-peers`: a process that reads what `export hf` writes."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.core.rows import ROOT
from bench.peers.base import Skipped
from bench.suites.encoder.cases import Texts
from bench.suites.encoder.files import EncoderFiles
from engine.measure.clock import Reported

PYTHON = ROOT / "build" / "peers-venv" / "bin" / "python"
WORKER = Path(__file__).with_name("transformers_worker.py")


class TransformersEncoder:
    """EncoderEngine over a worker process, which says itself how long a call took. AutoModel with PyTorch's own attention, padded."""

    def __init__(self, files: EncoderFiles, dtype: str, threads: int) -> None:
        if not PYTHON.exists():
            raise Skipped("transformers 4 not installed; make bench-peers")
        self.prepared = 0.0
        quiet = {"OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        self._worker = subprocess.Popen(
            [PYTHON, WORKER, files.hugging_face(), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | quiet,
        )
        weakref.finalize(self, _end, self._worker)
        self.versions = self._answer()

    def call(self, texts: Texts) -> Callable[[], Reported]:
        self._ask(_request(texts))
        return lambda: Reported(self._ask({}))

    def hidden(self, texts: Texts) -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "hidden.npy"
            self._ask(_request(texts) | {"file": str(path)})
            return texts.visible(np.load(path))

    def _ask(self, request: dict[str, Any]) -> float:
        """Seconds of the call; raises RuntimeError with the worker's own words."""
        assert self._worker.stdin is not None
        self._worker.stdin.write(json.dumps(request) + "\n")
        self._worker.stdin.flush()
        return float(self._answer()["seconds"])

    def _answer(self) -> dict[str, Any]:
        assert self._worker.stdout is not None
        line = self._worker.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of transformers ended with status {self._worker.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer


def _request(texts: Texts) -> dict[str, Any]:
    ids, mask = texts.padded()
    return {"ids": ids.tolist(), "mask": mask.tolist()}


def _end(worker: subprocess.Popen[str]) -> None:
    """Closing its input ends it."""
    assert worker.stdin is not None and worker.stdout is not None
    worker.stdin.close()
    worker.stdout.close()
    worker.wait()
