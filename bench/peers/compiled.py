"""torch.compile of the compact layers, caches kept, shapes fixed."""

from __future__ import annotations

from typing import ClassVar

import torch

from bench.peers.base import PeerRunner, Skipped
from bench.peers.plain import PlainStack
from engine.checkpoint import Checkpoint

MOST = 8  # configurations of one process: dtype, heads, batch and rows; each takes minutes on a small machine


class CompiledRunner(PeerRunner):
    """Runner whose layers are compiled on the first call of each shape; layers of as many heads share what was compiled."""

    done: ClassVar[set[tuple[object, ...]]] = set()

    def __init__(self, checkpoint: Checkpoint, dtype: str, threads: int) -> None:
        super().__init__(checkpoint, dtype, threads)
        torch._dynamo.config.recompile_limit = 16 * MOST  # several head counts in each of them
        self._plain = PlainStack(checkpoint, dtype).eval()
        self._identity = (dtype, threads, tuple(layer.heads for layer in self._plain.every))
        for layer in self._plain.every:
            if layer.heads:
                layer.compile(fullgraph=True, dynamic=False)

    def start(self, batch: int) -> list[torch.Tensor]:
        return self._plain.start(batch)

    def layers(self, hidden: torch.Tensor, state: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        configuration = (*self._identity, *hidden.shape)
        if configuration not in self.done:
            if len(self.done) == MOST:
                raise Skipped(f"{MOST} configurations are compiled in this run; measure the others in another")
            with self.preparing():
                self._plain(hidden, *state)
            self.done.add(configuration)
        hidden, *state = self._plain(hidden, *state)
        return hidden, state
