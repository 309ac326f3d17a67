"""`headcount prune …`: rank heads, try how many can go, take them out."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from engine.cli_support import parse_options, print_json, progress_bar, spinner
from engine.errors import EngineError

app = typer.Typer(
    name="prune",
    help="Rank the heads of an encoder by what they contribute, and prune those that contribute least (arXiv 2108.08375).",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)

ModelPath = Annotated[str, typer.Argument(metavar="MODEL", help="An encoder: an engine directory or any source `convert` accepts.")]
Data = Annotated[list[str] | None, typer.Option("--data", metavar="FILE", help="Labelled sentences, or a folder of slots; repeatable.")]
Format = Annotated[str, typer.Option("--format", metavar="NAME", help="auto, conllu, columns, xsid, slots or tagged-lines.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first sentences of each file.")]
CutLong = Annotated[bool, typer.Option("--cut-long", help="Sentences too long for the model go on in another sequence.")]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Sequences in a batch.")]
Device = Annotated[str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N.")]
Settings = Annotated[list[str] | None, typer.Option("--option", "-o", metavar="NAME=VALUE", help="A setting of the source.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what stands at the output.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress and no remarks.")]
Ranking = Annotated[
    list[str] | None,
    typer.Option("--ranking", metavar="PATH", help="A folder of `rank`, scores .npy or .json, a Shapley tracker; several with --combine."),
]
Combine = Annotated[str, typer.Option("--combine", metavar="NAME", help="Of several rankings: sd (sum) or md (mean rank, ranked anew).")]


@app.command()
def rank(
    model: ModelPath,
    output: Annotated[str, typer.Argument(metavar="OUT", help="The folder for scores.npy and ranking.json.")],
    data: Data = None,
    format: Format = "auto",
    limit: Limit = None,
    cut_long: CutLong = False,
    method: Annotated[str, typer.Option("--method", metavar="NAME", help="gradient, michel, confidence, magnitude, random.")] = "gradient",
    reverse: Annotated[bool, typer.Option("--reverse", help="Highest first: a control.")] = False,
    batch: Batch = 32,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the random order.")] = 42,
    device: Device = "auto",
    option: Settings = None,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score every head of a tagging model on labelled sentences.

    An interrupted ranking goes on when it is started again.
    """
    options = parse_options(option)
    _require_torch()
    from engine.api import open_checkpoint
    from engine.prune.rank import RankOptions
    from engine.prune.rank import rank as rank_heads
    from engine.prune.task import DataOptions

    checkpoint = open_checkpoint(model, **options)
    chosen = RankOptions(method, reverse, batch, seed, device)
    with progress_bar("Ranking", quiet) as progress:
        reading = DataOptions(format, limit, cut_long)
        result = rank_heads(checkpoint, Path(output), data or [], reading, chosen, force=force, progress=progress)
    if as_json:
        print_json(result)
    elif not quiet:
        _print_scores(result["scores"])
        lowest = ", ".join(f"{layer}.{head}" for layer, head in result["order"][:12])
        print(f"first to prune (layer.head): {lowest} …\n{output}: scores.npy, ranking.json")


@app.command()
def apply(
    model: ModelPath,
    output: Annotated[str, typer.Argument(metavar="OUT", help="The engine directory to write.")],
    ranking: Ranking = None,
    combine: Combine = "sd",
    mask: Annotated[str | None, typer.Option("--mask", metavar="FILE", help="Instead of a ranking: which heads stay.")] = None,
    mask_format: Annotated[
        str, typer.Option("--mask-format", metavar="NAME", help="auto, heads, michel, voita, voita-logits or shapley.")
    ] = "auto",
    heads: Annotated[int | None, typer.Option("--heads", min=0, help="Heads the model keeps.")] = None,
    fraction: Annotated[float | None, typer.Option("--fraction", help="Share of its heads that goes.")] = None,
    flops: Annotated[float | None, typer.Option("--flops", help="FLOPs of a prefill it may need; up to 1, a share of its own.")] = None,
    parameters: Annotated[float | None, typer.Option("--parameters", help="Parameters it may have; up to 1, a share of its own.")] = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Tokens of the prefill that --flops counts.")] = 128,
    option: Settings = None,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the model without its lowest heads, or with the heads of a mask."""
    options = parse_options(option)
    if (mask is None) == (not ranking):
        raise typer.BadParameter("give either --ranking with a budget or --mask")
    import engine.checkpoint as checkpoints
    from engine.api import open_checkpoint, require_finite
    from engine.prune.apply import apply_mask, apply_ranking
    from engine.prune.masks import read_mask, read_scores
    from engine.prune.select import Budget
    from engine.prune.select import combine as combine_scores

    checkpoint = open_checkpoint(model, **options)
    budget = Budget(heads, fraction, flops, parameters, rows)
    with spinner("Pruning", quiet):
        if mask is not None:
            if (heads, fraction, flops, parameters) != (None,) * 4:
                raise typer.BadParameter("a mask says which heads stay: it takes no budget")
            choice = read_mask(Path(mask), checkpoint.spec, mask_format)
            pruned = apply_mask(checkpoint, choice, {"mask": Path(mask).name})
        else:
            several = [read_scores(Path(path), checkpoint.spec) for path in ranking or []]
            scores = several[0] if len(several) == 1 else combine_scores(several, combine)
            about = {"ranking": [Path(path).name for path in ranking or []], "combine": combine if len(several) > 1 else None}
            pruned = apply_ranking(checkpoint, scores, budget.check(), about)
        require_finite(pruned, model)
        checkpoints.save(pruned, output, force=force)
    _report(checkpoint, pruned, output, rows, as_json, quiet)


def _report(before: Any, after: Any, output: str, rows: int, as_json: bool, quiet: bool) -> None:
    from engine.cost import model_cost

    costs = [model_cost(checkpoint.spec, rows=rows).total for checkpoint in (before, after)]
    kept = [[list(layer.attention.kept) for layer in checkpoint.spec.layers] for checkpoint in (before, after)]
    counts = [sum(map(len, rows_of)) for rows_of in kept]
    flops, parameters = [cost.prefill.needed for cost in costs], [cost.parameters for cost in costs]
    if as_json:
        print_json({"output": output, "kept": kept[1], "heads": counts, "parameters": parameters, "flops": flops, "rows": rows})
    elif not quiet:
        print(f"{output}: {counts[1]} of {counts[0]} heads, {parameters[1]:,} of {parameters[0]:,} parameters")
        print(f"  {flops[1] / flops[0]:.1%} of the FLOPs of a prefill of {rows} tokens")


def _print_scores(scores: list[list[float | None]]) -> None:
    """A row for each layer; heads that are gone are empty."""
    width = max(map(len, scores))
    print("layer " + " ".join(f"{head:>6}" for head in range(width)))
    for layer, row in enumerate(scores):
        print(f"{layer:>5} " + " ".join("      " if score is None else f"{score:6.3f}" for score in row))


def _require_torch() -> None:
    if find_spec("torch") is None:
        raise EngineError("PyTorch is needed to rank and fine-tune and is not installed", hint="pip install headcount[prune]")
