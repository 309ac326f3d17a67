"""The token loop: one batched step per token, finished sequences leave and waiting ones take their place."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence

import numpy as np

from engine.runtime.executor import CHUNK, Executor, groups
from engine.runtime.sampler import Draw
from engine.runtime.sequence import Generation, Token

MOST_RUNNING = 64  # sequences decoded together


def generate(executor: Executor, generations: Sequence[Generation]) -> Generator[tuple[int, Token], None, None]:
    """Yield (number of the generation, token) until each has its finish_reason; closing the iterator frees all slots."""
    waiting, running = deque(enumerate(generations)), list[tuple[int, Generation]]()
    try:
        while waiting or running:
            batches = [running.copy()] if running else []
            while waiting and len(running) < MOST_RUNNING:
                number, generation = waiting.popleft()
                generation.slot = executor.open()
                running.append((number, generation))
            fresh = running[len(batches[0]) if batches else 0 :]
            batches += [[fresh[i] for i in group] for group in groups([min(len(g.pending), CHUNK) for _, g in fresh])]
            for batch in batches:
                draws = _advance(executor, [g for _, g in batch])
                for (number, generation), draw in zip(batch, draws, strict=True):
                    yield number, generation.accept(draw)
            ended = [g.slot for _, g in running if g.finish_reason]
            running = [(number, g) for number, g in running if not g.finish_reason]
            executor.give_back(ended)
    finally:
        executor.give_back([g.slot for _, g in running])


def _advance(executor: Executor, batch: Sequence[Generation]) -> list[Draw]:
    """Feed what is pending, long prompts in chunks; the token that follows each."""
    while long := [g for g in batch if len(g.pending) > CHUNK]:
        rows = [g.pending[:CHUNK] for g in long]
        executor.run(_slots(long), _positions(long), rows, "hidden")
        for generation in long:
            generation.position += CHUNK
            generation.pending = generation.pending[CHUNK:]
    draws = executor.draw(_slots(batch), _positions(batch), [g.pending for g in batch], [g.request for g in batch])
    for generation in batch:
        generation.position += len(generation.pending)
    return draws


def _slots(batch: Sequence[Generation]) -> np.ndarray:
    return np.array([g.slot for g in batch])


def _positions(batch: Sequence[Generation]) -> np.ndarray:
    return np.array([g.position for g in batch])
