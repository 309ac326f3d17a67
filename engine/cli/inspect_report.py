"""What `headcount inspect` shows: a model's heads, parameters, memory and FLOPs per layer, against its dense parent."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.checkpoint import Checkpoint
from engine.measure.numbers import scaled
from engine.spec.cost import BYTES, Cost, LayerCost, PartCost, inside, model_cost, outside

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

BAR = 8  # cells of the bar of a layer with more heads than this


class Report:
    """A checkpoint's cost beside that of the same model with every source head; speed-ups are nominal: ratios of `needed` FLOPs.

    rows, batch: of the prefill; dtype None = the one the weights are stored in.  name: for the first line and the picture's title.
    """

    def __init__(
        self, checkpoint: Checkpoint, *, rows: int = 192, batch: int = 1, dtype: str | None = None, name: str | None = None
    ) -> None:
        self.checkpoint = checkpoint
        self.spec = checkpoint.spec
        self.name = name or str(checkpoint.provenance.get("source", "model"))
        chosen = stored_dtype(checkpoint) if dtype is None else dtype
        every_head = tuple(tuple(range(layer.attention.source_heads)) for layer in self.spec.layers)
        self.cost = model_cost(self.spec, dtype=chosen, rows=rows, batch=batch)
        self.dense = model_cost(self.spec.with_kept(every_head), dtype=chosen, rows=rows, batch=batch)

    @property
    def stored_bytes(self) -> int:
        """Bytes of all tensors as the checkpoint holds them."""
        return sum(array.nbytes for array in self.checkpoint.weights.values())

    @property
    def decodes(self) -> bool:
        """Whether the model runs token by token and keeps keys and values; an encoder does not."""
        return any(layer.attention.causal for layer in self.spec.layers)

    def speedups(self) -> dict[str, float | None]:
        """Dense over this model's needed FLOPs, whole and layers alone; None where nothing is left to compute."""
        ours, dense = inside(self.cost), inside(self.dense)
        if not self.decodes:
            return {
                "prefill": _ratio(self.dense.prefill().needed, self.cost.prefill().needed),
                "prefill_layers": _ratio(dense.prefill.needed, ours.prefill.needed),
            }
        return {
            "prefill": _ratio(self.dense.prefill().needed, self.cost.prefill().needed),
            "decode": _ratio(self.dense.decode.needed, self.cost.decode.needed),
            "prefill_layers": _ratio(dense.prefill.needed, ours.prefill.needed),
            "decode_layers": _ratio(dense.decode.needed, ours.decode.needed),
        }

    def to_json(self) -> dict[str, object]:
        """Everything shown, and more, as a JSON value."""
        spec = self.spec
        return {
            "name": self.name,
            "hidden": spec.hidden,
            "vocab": spec.vocab,
            "task": spec.task,
            "heads": sum(layer.heads for layer in self.cost.layers),
            "source_heads": sum(layer.source_heads for layer in self.cost.layers),
            "kept": [list(layer.attention.kept) for layer in spec.layers],
            "stored_bytes": self.stored_bytes,
            "provenance": dict(self.checkpoint.provenance),
            "cost": self.cost.to_dict(),
            "dense": self.dense.to_dict()["total"],
            "nominal_speedup": self.speedups(),
        }

    def print(self, console: Console | None = None) -> None:
        """Write the model line, the table of layers and the totals against the dense model."""
        if console is None:
            from rich.console import Console

            console = Console()
        for line in _model_lines(self):
            console.print(line, highlight=False, markup=False)
        console.print(_layer_table(self))
        console.print(_totals_table(self))
        console.print(_note(self), highlight=False, markup=False, style="dim")

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Write a PNG of heads and FLOPs. Raises CheckpointError when it cannot, Unsupported without matplotlib."""
        from engine.cli.inspect_plot import write_picture

        write_picture(self.name, self.cost, self.dense, Path(path))


def stored_dtype(checkpoint: Checkpoint) -> str:
    """The dtype that holds most bytes of the weights, float32 where it is none a model runs in."""
    held: Counter[str] = Counter()
    for array in checkpoint.weights.values():
        held[array.dtype.name] += array.nbytes
    name = held.most_common(1)[0][0] if held else "float32"
    return name if name in BYTES else "float32"


def heads_bar(heads: int, source_heads: int) -> str:
    """One cell per head, or BAR cells for more heads; a layer with heads left shows at least one cell, a pruned one at least one gap."""
    if source_heads <= BAR:
        return "█" * heads + "·" * (source_heads - heads)
    full = round(BAR * heads / source_heads)
    full = min(max(full, 1 if heads else 0), BAR if heads == source_heads else BAR - 1)
    return "█" * full + "·" * (BAR - full)


def ranges(numbers: tuple[int, ...]) -> str:
    """Ascending numbers with runs of three or more shortened: (0, 1, 2, 5) → '0-2 5'; 'none' without any."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return " ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else " ".join(map(str, run)) for run in runs) or "none"


def _model_lines(report: Report) -> list[str]:
    spec, cost = report.spec, report.cost
    kept, source_heads = sum(layer.heads for layer in cost.layers), sum(layer.source_heads for layer in cost.layers)
    sparsity = f" ({1 - kept / source_heads:.1%} pruned)" if kept < source_heads else ""
    lines = [
        report.name,
        f"  hidden {spec.hidden} · {len(spec.layers)} layers · {kept} of {source_heads} heads{sparsity} · vocabulary {spec.vocab:,}",
        f"  {cost.parameters:,} parameters · {scaled(report.stored_bytes, 'B')} of {stored_dtype(report.checkpoint)} weights",
    ]
    return [*lines, _provenance_line(report.checkpoint.provenance)]


def _provenance_line(provenance: Mapping[str, Any]) -> str:
    origin = f"from {provenance.get('format', 'an unknown format')}"
    version = f", converter {provenance['converter_version']}" if "converter_version" in provenance else ""
    digest = f", sha256 {str(provenance['sha256'])[:12]}…" if "sha256" in provenance else ""
    return f"  {origin}{version}{digest}"


def _layer_table(report: Report) -> Table:
    from rich import box
    from rich.table import Table

    cost = report.cost
    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("layer", justify="right", no_wrap=True)
    table.add_column("heads", no_wrap=True)
    table.add_column("kept", overflow="fold")
    decode_titles = ("KV bytes\na token", f"FLOP\n{cost.rows} tokens", "FLOP\ndecode", "of\ndecode")
    for title in ("params", *(decode_titles if report.decodes else (f"FLOP\n{cost.rows} tokens", "of\nall"))):
        table.add_column(title, justify="right", no_wrap=True)
    width = max(len(str(layer.heads)) for layer in cost.layers)
    for layer, described in zip(cost.layers, report.spec.layers, strict=True):
        bar = f"{heads_bar(layer.heads, layer.source_heads)}  {layer.heads:>{width}}/{layer.source_heads}"
        table.add_row(str(layer.index), bar, ranges(described.attention.kept), *_cells(report, layer.total, layer))
    table.add_row("", "outside", "", *_cells(report, outside(cost), None), end_section=True)
    table.add_row("", "total", "", *_cells(report, cost.total, cost), style="bold")
    return table


def _cells(report: Report, part: PartCost, cache: LayerCost | Cost | None) -> list[str]:
    cost = report.cost
    if not report.decodes:
        share = part.prefill.needed / max(cost.prefill().needed, 1)
        return [scaled(part.parameters), scaled(part.prefill.needed), f"{share:.1%}"]
    return [
        scaled(part.parameters),
        "" if cache is None else scaled(cache.kv_bytes_per_token),
        scaled(part.prefill.needed),
        scaled(part.decode.needed),
        f"{part.decode.needed / max(cost.decode.needed, 1):.1%}",
    ]


def _totals_table(report: Report) -> Table:
    from rich import box
    from rich.table import Table

    cost, dense = report.cost, report.dense
    ours_inside, dense_inside = inside(cost), inside(dense)
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("")
    for title in ("dense", "this model", "ratio"):
        table.add_column(title, justify="right", no_wrap=True)
    rows: list[tuple[str, str, int, int]] = [
        ("parameters", "", dense.parameters, cost.parameters),
        ("weights", "B", dense.weight_bytes, cost.weight_bytes),
        ("keys and values of a token", "B", dense.kv_bytes_per_token, cost.kv_bytes_per_token),
        ("keys and values of a full window", "B", dense.kv_bytes, cost.kv_bytes),
        ("activations, peak (estimate)", "B", dense.activation_bytes, cost.activation_bytes),
        (f"{'prefill of ' if report.decodes else ''}{cost.rows} tokens", "FLOP", dense.prefill().needed, cost.prefill().needed),
        ("  its layers", "FLOP", dense_inside.prefill.needed, ours_inside.prefill.needed),
        ("decode of a token", "FLOP", dense.decode.needed, cost.decode.needed),
        ("  its layers", "FLOP", dense_inside.decode.needed, ours_inside.decode.needed),
    ]
    for title, unit, before, after in rows if report.decodes else [*rows[:2], *rows[4:7]]:
        ratio = _ratio(before, after)
        table.add_row(title, scaled(before, unit), scaled(after, unit), "" if ratio is None else f"{ratio:.2f}×")
    return table


def _note(report: Report) -> str:
    cost = report.cost
    sequences = "1 sequence" if cost.batch == 1 else f"{cost.batch} sequences"
    return f"FLOP: needed, 2 per multiply-add, {sequences}, {cost.dtype}"


def _ratio(before: int, after: int) -> float | None:
    return before / after if after else None
