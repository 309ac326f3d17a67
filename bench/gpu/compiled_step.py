"""The peer of a decode step: the same layers as plain functions of plain tensors, eager and by torch.compile with its own CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from bench.gpu.figures import Run, host
from engine.model.runner import Runner
from engine.model.torch_runner import TorchLayer, TorchRunner
from engine_kernels import reference

COMPILES = 60.0  # seconds that are kept for a compilation
Step = Callable[[torch.Tensor], torch.Tensor]


def measure(run: Run, runner: Runner, heads: int, batch: int) -> None:
    """Layers of one token for `batch` sequences in mid-stream; compiled only for the first batch size, as it takes its time."""
    assert isinstance(runner, TorchRunner)
    hidden = torch.randn((batch, runner.stack.hidden), device=run.device)
    eager = step_of(runner, batch)
    run.add("decode", f"torch, eager, {heads} heads, batch {batch}", **run.seconds(lambda: eager(hidden)))
    if run.interpreted or batch != run.sizes.batches[0]:
        return
    wanted = host(eager(hidden))
    for mode in ("reduce-overhead", "max-autotune"):
        name = f"torch.compile, {mode}, {heads} heads, batch {batch}"
        run.postpone(f"decode, {name}", partial(_compiled, run, name, mode, step_of(runner, batch), hidden, wanted), COMPILES)


def _compiled(run: Run, name: str, mode: str, step: Step, hidden: torch.Tensor, wanted: np.ndarray) -> None:
    compiled = torch.compile(step, mode=mode, dynamic=False)
    gate = run.gate(name, host(compiled(hidden)), wanted, wanted)  # both in one dtype: agreement with the eager form
    if gate is not None:
        run.add("decode", name, **run.seconds(lambda: compiled(hidden)), gate=gate)


def step_of(runner: TorchRunner, batch: int) -> Step:
    """hidden [batch, hidden] → after all layers, of norm-first layers without feed-forwards, on rings of their own."""
    layers: list[tuple[TorchLayer, torch.Tensor | None]] = []
    positions = torch.full((batch,), 1000, device=runner.device)
    for layer in runner.layers:
        assert layer.plan.norm_first and not layer.plan.feed_forward
        if layer.start is None:  # no head: nothing but its bias
            layers.append((layer, None))
            continue
        heads, head_dim = layer.start.zero_key.shape
        rings = torch.zeros((2, batch, heads, layer.see.reach, head_dim), dtype=layer.start.zero_key.dtype, device=runner.device)
        torch._dynamo.mark_static_address(rings)  # written in place: graphs may then still be used
        layers.append((layer, rings))
    order = torch.arange(batch, device=runner.device)

    def step(hidden: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            for layer, rings in layers:
                weights, bias = layer.weights, layer.weights.get("attention.output_bias")
                if rings is None:
                    hidden = hidden if bias is None else hidden + bias.float()
                    continue
                x = reference.layer_norm(hidden, weights["attention_norm"], weights["attention_norm_bias"], layer.plan.norm_eps)
                shape = (batch, *rings.shape[2:3], rings.shape[4])
                query, key, value = (
                    reference.linear(x, weights[f"attention.{name}"], weights.get(f"attention.{name}_bias")).reshape(shape)
                    for name in ("query", "key", "value")
                )
                place = positions % layer.see.reach
                rings[0, order, :, place] = key.to(rings.dtype)
                rings[1, order, :, place] = value.to(rings.dtype)
                out = reference.attend_cached(query, rings[0], rings[1], positions, layer.tables, layer.see)
                hidden = hidden + reference.linear(out.flatten(1), weights["attention.output"], bias)
        return hidden

    return step
