"""`flops`: what models should cost, from their specs alone."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from engine.measure.numbers import scaled
from engine.spec import ModelSpec
from engine.spec.cost import Cost, inside, model_cost

Named = dict[str, ModelSpec]


def dense_and(spec: ModelSpec) -> Named:
    """A model beside itself with every head of its source."""
    every = tuple(tuple(range(layer.attention.source_heads)) for layer in spec.layers)
    return {"every head": spec.with_kept(every), "this model": spec}


def costs(specs: Named, *, dtype: str, rows: int, batch: int) -> dict[str, Cost]:
    return {name: model_cost(spec, dtype=dtype, rows=rows, batch=batch) for name, spec in specs.items()}


def to_json(found: dict[str, Cost]) -> dict[str, Any]:
    """Each model's cost, and how many times less it needs than the first."""
    first = next(iter(found.values()))
    return {name: cost.to_dict() | {"nominal_speedup": _speedups(first, cost)} for name, cost in found.items()}


def table(found: dict[str, Cost]) -> Table:
    """FLOPs needed, and those of the prefill that the tiles of the reference execute; speed-ups, prefill / decode, are of needed."""
    first = next(iter(found.values()))
    title = f"FLOPs: prefill of {first.batch} × {first.rows} tokens, decode of {first.batch} × 1; nominal speed-ups"
    result = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    for header in ("", "parameters", "prefill", "executed", "decode", "layers", "whole"):
        result.add_column(header, no_wrap=True, justify="right" if header else "left")
    for name, cost in found.items():
        speedups = _speedups(first, cost)
        result.add_row(
            name,
            scaled(cost.parameters),
            scaled(cost.prefill().needed),
            scaled(cost.prefill().executed),
            scaled(cost.decode.needed),
            *(_both(speedups[f"prefill{part}"], speedups[f"decode{part}"]) for part in ("_layers", "")),
        )
    return result


def part_table(cost: Cost) -> Table:
    """Where the FLOPs of one model go."""
    result = Table("part", "parameters", "prefill FLOPs", "share", "decode FLOPs", "share")
    total = cost.total
    for part in cost.parts:
        if part.parameters or part.prefill.needed:
            result.add_row(
                part.name,
                scaled(part.parameters),
                scaled(part.prefill.needed),
                f"{part.prefill.needed / max(1, total.prefill.needed):.1%}",
                scaled(part.decode.needed),
                f"{part.decode.needed / max(1, total.decode.needed):.1%}",
            )
    return result


def _speedups(first: Cost, cost: Cost) -> dict[str, float | None]:
    ours, base = inside(cost), inside(first)
    pairs = {
        "prefill": (first.prefill().needed, cost.prefill().needed),
        "decode": (first.decode.needed, cost.decode.needed),
        "prefill_layers": (base.prefill.needed, ours.prefill.needed),
        "decode_layers": (base.decode.needed, ours.decode.needed),
    }
    return {name: a / b if b else None for name, (a, b) in pairs.items()}


def _both(prefill: float | None, decode: float | None) -> str:
    """Prefill / decode; one figure where they are the same."""
    shown = ["–" if value is None else f"{value:.2f}×" for value in (prefill, decode)]
    return shown[0] if shown[0] == shown[1] else " / ".join(shown)
