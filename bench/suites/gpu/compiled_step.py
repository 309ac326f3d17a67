"""The peer of a decode step: the same layers as plain functions of plain tensors, eager and by torch.compile with its own CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from bench.suites.gpu.figures import Run, host
from bench.suites.gpu.models import GpuModel
from engine.backends.torch.cache import Start
from engine.backends.torch.runner import TorchLayer, TorchRunner
from engine_kernels import reference

MODES = ("reduce-overhead", "max-autotune")
Step = Callable[[torch.Tensor], torch.Tensor]


def eager(run: Run, model: GpuModel, batch: int) -> None:
    """Layers of one token for `batch` sequences in mid-stream."""
    step, hidden = step_of(model.plain, batch), _hidden(run, model, batch)
    run.add("decode", f"torch, eager, {model.heads} heads, batch {batch}", **run.clock.both(lambda: step(hidden)))


def measure(run: Run, models: Sequence[GpuModel]) -> None:
    """Compiled, for the first batch size only, as it takes its time."""
    if run.interpreted:
        run.miss("decode, torch.compile: the interpreter compiles nothing")
        return
    for model in models:
        for mode in MODES:
            name = f"torch.compile, {mode}, {model.heads} heads, batch {run.sizes.batches[0]}"
            run.attempt(f"decode, {name}", partial(_compiled, run, model, name, mode, run.sizes.batches[0]))


def _compiled(run: Run, model: GpuModel, name: str, mode: str, batch: int) -> None:
    hidden = _hidden(run, model, batch)
    exact, plain = (host(step_of(runner, batch)(hidden)) for runner in (model.exact, model.plain))
    compiled = torch.compile(step_of(model.plain, batch), mode=mode, dynamic=False)
    gate = run.gate(f"decode, {name}", host(compiled(hidden)), plain, exact)
    if gate is not None:
        run.add("decode", name, **run.clock.both(lambda: compiled(hidden)), gate=gate)


def _hidden(run: Run, model: GpuModel, batch: int) -> torch.Tensor:
    return torch.randn((batch, model.plain.stack.hidden), device=run.device)


def step_of(runner: TorchRunner, batch: int) -> Step:
    """hidden [batch, hidden] → after all layers, of norm-first layers without feed-forwards.

    On rings of their own, filled with the same random numbers in every dtype.
    """
    draw = torch.Generator(runner.device).manual_seed(5)
    layers: list[tuple[TorchLayer, torch.Tensor | None]] = []
    positions = torch.full((batch,), 1000, device=runner.device)
    for layer in runner.layers:
        assert layer.plan.norm_first and not layer.plan.feed_forward
        if layer.start is None:  # no head: nothing but its bias
            layers.append((layer, None))
            continue
        assert isinstance(layer.start, Start)
        heads, head_dim = layer.start.zero_key.shape
        rings = torch.randn((2, batch, heads, layer.visibility.reach, head_dim), generator=draw, device=runner.device)
        rings = rings.to(layer.start.zero_key.dtype)
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
                place = positions % layer.visibility.reach
                rings[0, order, :, place] = key.to(rings.dtype)
                rings[1, order, :, place] = value.to(rings.dtype)
                out = reference.attend_cached(query, rings[0], rings[1], positions, layer.tables, layer.visibility)
                hidden = hidden + reference.linear(out.flatten(1), weights["attention.output"], bias)
        return hidden

    return step
