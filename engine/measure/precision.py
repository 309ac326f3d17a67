"""What narrower numbers cost: one text scored exactly, then in each precision, and the change of its likelihood."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from engine.errors import BackendUnavailable
from engine.loading import Model
from engine.runtime.scoring import Score

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Precision:
    """What to load a model with: `dtype` and `quantization` of engine.load."""

    dtype: str = "auto"
    quantization: str | None = None


EXACT = Precision("float32")
USUAL = (Precision("bfloat16"), Precision("auto", "int8"))  # compared where the user names none


@dataclass(frozen=True)
class PrecisionScore:
    """A text's mean negative log-likelihood in nats per token, its perplexity, and their changes from the exact ones.

    nll_percent, ppl_percent: the same changes relative to the exact figures.  refused: why this precision cannot run here; then all
    figures are None.
    """

    dtype: str
    quantization: str | None
    nll: float | None = None
    ppl: float | None = None
    nll_change: float | None = None
    nll_percent: float | None = None
    ppl_percent: float | None = None
    refused: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare_precisions(
    load: Callable[[Precision], Model], score: Callable[[Model], Score], precisions: Sequence[Precision] = USUAL, *, named: bool = False
) -> list[PrecisionScore]:
    """The exact score, then that of each precision; one model is loaded at a time.

    named: the user asked for these precisions, so that one which cannot run is an error, BackendUnavailable, and no line of the table.
    """
    exact = _measured(load, score, EXACT, None)
    found = [exact]
    for precision in precisions:
        try:
            found.append(_measured(load, score, precision, exact))
        except BackendUnavailable as error:
            if named:
                raise
            found.append(PrecisionScore(precision.dtype, precision.quantization, refused=str(error)))
    return found


def print_precisions(found: Sequence[PrecisionScore], title: str, console: Console | None = None) -> None:
    """Write the table; title says what was scored."""
    from rich.console import Console
    from rich.table import Table

    console = console or Console()
    table = Table("precision", "nll", "ppl", "nll change", "ppl change", title=title, title_justify="left")
    for line in found:
        name = line.dtype if line.quantization is None else f"{line.quantization}, rest {line.dtype}"
        if line.refused is None:
            changes = ["", ""] if line is found[0] else [f"{line.nll_change:+.6f} ({line.nll_percent:+.3f}%)", f"{line.ppl_percent:+.3f}%"]
            table.add_row(name, f"{line.nll:.6f}", f"{line.ppl:.4f}", *changes)
        else:
            table.add_row(name, "cannot run")
    console.print(table)
    for line in found:
        if line.refused is not None:
            console.print(line.refused, highlight=False, markup=False)


def _measured(
    load: Callable[[Precision], Model], score: Callable[[Model], Score], precision: Precision, exact: PrecisionScore | None
) -> PrecisionScore:
    with load(precision) as model:
        dtype, result = model.explain().dtype, score(model)
    if exact is None or exact.nll is None:
        return PrecisionScore(dtype, precision.quantization, result.mean, result.ppl, 0.0, 0.0, 0.0)
    change = result.mean - exact.nll
    relative = 100 * change / exact.nll if exact.nll else math.nan
    return PrecisionScore(dtype, precision.quantization, result.mean, result.ppl, change, relative, 100 * _grown(change))


def _grown(change: float) -> float:
    """e^change - 1, the relative change of a perplexity; infinite where it overflows."""
    return math.expm1(change) if change < 700 else math.inf
