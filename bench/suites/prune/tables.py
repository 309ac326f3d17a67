"""Tables of kept runs of `headcount prune trials`: `python -m bench.suites.prune.tables keep OUT NAME`, `… show NAME`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from bench.core.rows import RESULTS
from engine.measure.environment import environment


def keep(run: Path, name: str) -> None:
    """Copy a run's summary and picture into bench/results, with the machine it ran on."""
    summary = json.loads((run / "summary.json").read_text())
    found = environment()
    summary["machine"] = {key: found.get(key) for key in ("system", "python", "processor", "cores", "instruction_sets", "packages")}
    (RESULTS / f"prune-{name}.json").write_text(json.dumps(summary, indent=1) + "\n")
    shutil.copyfile(run / "score.png", RESULTS / f"prune-{name}.png")


def table(summary: dict[str, Any]) -> str:
    """A Markdown table: a row for each k, dev and test scores of each order in percent; in bold the k chosen on dev."""
    orders = summary["orders"]
    lines = ["| heads removed | " + " | ".join(f"{order['order']}: dev | test" for order in orders) + " |"]
    lines.append("|--:|" + "--:|--:|" * len(orders))
    dense = summary["dense"]
    lines.append("| 0 (dense) | " + " | ".join([f"{_percent(dense, 'dev')} | {_percent(dense, 'test')}"] * len(orders)) + " |")
    for index, first in enumerate(orders[0]["trials"]):
        cells = []
        for order in orders:
            trial = order["trials"][index]
            mark = "**" if trial["k"] == order["best"]["k"] else ""
            cells.append(f"{mark}{_percent(trial, 'dev')}{mark} | {mark}{_percent(trial, 'test')}{mark}")
        lines.append(f"| {first['k']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _percent(trial: dict[str, Any], part: str) -> str:
    return f"{100 * trial[part]['score']:.2f}"


def main(arguments: list[str]) -> int:
    if len(arguments) == 3 and arguments[0] == "keep":
        keep(Path(arguments[1]), arguments[2])
    elif len(arguments) == 2 and arguments[0] == "show":
        print(table(json.loads((RESULTS / f"prune-{arguments[1]}.json").read_text())))
    else:
        print(__doc__, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
