"""The models of the decode, token and score sections, dense and pruned, by our backends and by plain PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bench.core.cases import compact, dense_model, kept_lists
from bench.core.engines import EngineSettings, Stream, build
from bench.suites.gpu.figures import Run
from engine.backends.fold import fold
from engine.backends.gpu.runner import GpuRunner
from engine.backends.plan import compile_stack
from engine.backends.runner import Limits, StepResult, Want
from engine.backends.torch.runner import TorchRunner
from engine.backends.torch.runner import build as build_torch
from engine.checkpoint import Checkpoint

SIDE_BY_SIDE = 16  # sequences plain PyTorch takes at once, which holds scores of all persistent vectors in memory


@dataclass
class GpuModel:
    """A checkpoint and its runners, each made when first asked for."""

    run: Run
    checkpoint: Checkpoint

    @property
    def heads(self) -> int:
        return sum(layer.attention.heads for layer in self.checkpoint.spec.layers)

    @property
    def vocab(self) -> int:
        return self.checkpoint.spec.vocab

    @cached_property
    def ours(self) -> GpuRunner:
        assert self.run.backend is not None
        runner = build(self.checkpoint, EngineSettings(self.run.backend, self.run.dtype))
        assert isinstance(runner, GpuRunner)
        return runner

    @cached_property
    def plain(self) -> TorchRunner:
        """Plain PyTorch in the dtype of the run."""
        return self._torch(self.run.dtype)

    @cached_property
    def exact(self) -> TorchRunner:
        """Plain PyTorch in float32, which the rule takes for exact beside 16 bits."""
        return self._torch("float32")

    def _torch(self, dtype: str) -> TorchRunner:
        limits = Limits(dtype, device=str(self.run.device))
        runner = build_torch(compile_stack(self.checkpoint.spec), fold(self.checkpoint), limits)
        assert isinstance(runner, TorchRunner)
        return runner


def models(run: Run) -> list[GpuModel]:
    """The dense model of the geometry, and the one with the fewest heads."""
    dense = dense_model(run.sizes.geometry, vocabulary=False)
    lists = kept_lists(run.sizes.geometry)
    return [GpuModel(run, dense), GpuModel(run, compact(dense, lists[min(lists)]))]


def at_once(runner: TorchRunner, ids: np.ndarray, want: Want, targets: np.ndarray | None = None) -> np.ndarray:
    """What plain PyTorch answers to sequences ids [B, T] from their start, in one step of a few sequences each: [B, T, ..]."""
    parts = []
    for begin in range(0, len(ids), SIDE_BY_SIDE):
        rows = ids[begin : begin + SIDE_BY_SIDE]
        with Stream(runner, len(rows)) as stream:
            result = stream.step(rows, want, None if targets is None else targets[begin : begin + SIDE_BY_SIDE])
        parts.append(_rows(result, rows.shape))
    return np.concatenate(parts)


def _rows(result: StepResult, shape: tuple[int, ...]) -> np.ndarray:
    found = result.hidden if result.hidden is not None else result.nll
    assert found is not None
    return found.reshape(*shape, *found.shape[1:])
