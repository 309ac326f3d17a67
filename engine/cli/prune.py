"""`headcount prune …`: rank heads, try how many can go, take them out."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from engine.cli.support import open_noting, parse_options, print_json, progress_bar, progress_bars, spinner
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
Encoding = Annotated[str, typer.Option("--encoding", metavar="NAME", help="Of the files, as Python names it: latin-1, cp1252.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first sentences of each file.")]
CutLong = Annotated[bool, typer.Option("--cut-long", help="Sentences too long for the model go on in another sequence.")]
BatchSize = Annotated[int, typer.Option("--batch", min=1, help="Sequences in a batch.")]
Device = Annotated[str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N.")]
SourceOptions = Annotated[list[str] | None, typer.Option("--option", "-o", metavar="NAME=VALUE", help="A setting of the source.")]
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
    encoding: Encoding = "utf-8",
    limit: Limit = None,
    cut_long: CutLong = False,
    method: Annotated[str, typer.Option("--method", metavar="NAME", help="gradient, michel, confidence, magnitude, random.")] = "gradient",
    reverse: Annotated[bool, typer.Option("--reverse", help="Highest first: a control.")] = False,
    batch: BatchSize = 32,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the random order.")] = 42,
    device: Device = "auto",
    option: SourceOptions = None,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score every head of a tagging model on labelled sentences.

    An interrupted ranking goes on when it is started again.
    """
    options = parse_options(option)
    _require_torch()
    from engine.prune.rank import RankOptions
    from engine.prune.rank import rank as rank_heads
    from engine.prune.task import DataOptions

    checkpoint = open_noting(model, options, quiet)
    chosen = RankOptions(method, reverse, batch, seed, device)
    with progress_bar("Ranking", quiet) as progress:
        reading = DataOptions(format, limit, cut_long, encoding)
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
    option: SourceOptions = None,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the model without its lowest heads, or with the heads of a mask."""
    options = parse_options(option)
    if (mask is None) == (not ranking):
        raise typer.BadParameter("give either --ranking with a budget or --mask")
    import engine.checkpoint as checkpoints
    from engine.backends.checks import require_finite
    from engine.prune.apply import apply_mask, apply_ranking
    from engine.prune.masks import read_mask, read_scores
    from engine.prune.select import Budget
    from engine.prune.select import combine as combine_scores

    checkpoint = open_noting(model, options, quiet)
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


@app.command()
def trials(
    model: ModelPath,
    output: Annotated[str, typer.Argument(metavar="OUT", help="The folder of the run; one that stopped goes on.")],
    train: Annotated[list[str], typer.Option("--train", metavar="FILE", help="Labelled sentences to fine-tune on; repeatable.")],
    dev: Annotated[list[str], typer.Option("--dev", metavar="FILE", help="To rank heads and to choose k on; repeatable.")],
    test: Annotated[list[str] | None, typer.Option("--test", metavar="FILE", help="To report the chosen k on; repeatable.")] = None,
    source: Annotated[
        list[str] | None, typer.Option("--source", metavar="FILE", help="Rank on these instead of --dev, one by one; see --combine.")
    ] = None,
    combine: Annotated[
        str, typer.Option("--combine", metavar="NAME", help="Rankings of several sources: sd (sum), md (mean rank), ec (try each).")
    ] = "sd",
    labels: Annotated[str | None, typer.Option("--labels", metavar="FILE", help="All labels, one a line; else those of --train.")] = None,
    format: Format = "auto",
    encoding: Encoding = "utf-8",
    limit_train: Annotated[int | None, typer.Option("--limit-train", min=1, help="First sentences of each training file.")] = None,
    limit_dev: Annotated[int | None, typer.Option("--limit-dev", min=1, help="First sentences of each dev and source file.")] = None,
    limit_test: Annotated[int | None, typer.Option("--limit-test", min=1, help="First sentences of each test file.")] = None,
    cut_long: CutLong = False,
    counts: Annotated[str, typer.Option("--counts", metavar="LIST", help="Numbers of heads to remove: 1-12, or 1,2,4,8.")] = "1-12",
    method: Annotated[str, typer.Option("--method", metavar="M", help="gradient, michel, confidence, magnitude or random.")] = "gradient",
    reverse: Annotated[bool, typer.Option("--reverse", help="Remove the highest first.")] = False,
    control: Annotated[
        list[str] | None, typer.Option("--control", metavar="NAME", help="Also in this order: random or highest; repeatable.")
    ] = None,
    start: Annotated[str, typer.Option("--start", metavar="NAME", help="Weights of each trial: pretrained or fine-tuned.")] = "pretrained",
    stop_on_drop: Annotated[bool, typer.Option("--stop-on-drop", help="End an order when a score is below the one before.")] = False,
    epochs: Annotated[int, typer.Option("--epochs", help="Passes over the training data.")] = 3,
    rate: Annotated[float, typer.Option("--rate", help="Learning rate at its height.")] = 5e-5,
    batch: BatchSize = 32,
    warmup: Annotated[float, typer.Option("--warmup", help="Share of the steps in which the rate rises.")] = 0.1,
    decay: Annotated[float, typer.Option("--decay", help="Weight decay.")] = 0.0,
    dropout: Annotated[float, typer.Option("--dropout", help="While training.")] = 0.1,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the new head, dropout and shuffling.")] = 0,
    rank_seed: Annotated[int, typer.Option("--rank-seed", min=0, help="Of the random order.")] = 42,
    rank_batch: Annotated[int, typer.Option("--rank-batch", min=1, help="Sequences in a batch of the ranking.")] = 32,
    shuffle: Annotated[bool, typer.Option("--shuffle", help="Another order in each epoch; else that of the files.")] = False,
    precision: Annotated[str, typer.Option("--precision", metavar="NAME", help="Of training: float32 or bfloat16.")] = "float32",
    device: Device = "auto",
    picture: Annotated[bool, typer.Option("--picture/--no-picture", help="Draw OUT/score.png.")] = True,
    option: SourceOptions = None,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune an encoder without its k lowest heads for each k; choose k on dev.

    Every trial is kept as it ends, and a run that stopped goes on when it is started again.
    """
    options, tried = parse_options(option), _counts(counts)
    _require_torch()
    from engine.prune.picture import draw
    from engine.prune.rank import RankOptions
    from engine.prune.task import DataOptions
    from engine.prune.train import TrainOptions
    from engine.prune.trials import Files, TrialOptions, run_trials

    training = TrainOptions(epochs, rate, batch, warmup, decay, dropout, seed=seed, shuffle=shuffle, precision=precision)
    chosen = TrialOptions(
        counts=tried,
        ranking=RankOptions(method, reverse, rank_batch, rank_seed),
        controls=tuple(control or ()),
        combine=combine,
        start=start,
        stop_on_drop=stop_on_drop,
        device=device,
        limits=(limit_train, limit_dev, limit_test),
        train=training,
    )
    files, reading = Files(train, dev, test or (), source or (), labels), DataOptions(format, None, cut_long, encoding)
    checkpoint = open_noting(model, options, quiet)
    with progress_bars(quiet) as report:
        summary = run_trials(checkpoint, Path(output), files, reading, chosen, force=force, report=report)
    if picture:
        draw(summary, Path(output) / "score.png")
    if as_json:
        print_json(summary)
    elif not quiet:
        _print_trials(summary, output)


def _counts(text: str) -> tuple[int, ...]:
    try:
        parts = [part.split("-") for part in text.split(",")]
        return tuple(count for part in parts for count in range(int(part[0]), int(part[-1]) + 1))
    except ValueError:
        raise typer.BadParameter(f"--counts takes numbers like 1-12 or 1,2,4,8, not {text!r}") from None


def _print_trials(summary: dict[str, Any], output: str) -> None:
    parts = [part for part in ("dev", "test") if part in summary["dense"]]
    print(f"{'order':16} {'k':>3} " + " ".join(f"{part + ', %':>8}" for part in parts))
    rows = [("dense", summary["dense"], "")]
    for order in summary["orders"]:
        rows += [(order["order"], trial, "  ← best on dev" if trial == order["best"] else "") for trial in order["trials"]]
    for name, trial, mark in rows:
        print(f"{name:16} {trial['k']:>3} " + " ".join(f"{100 * trial[part]['score']:8.2f}" for part in parts) + mark)
    best = summary["best"]
    print(f"best on dev: {best['order']} without {best['k']} heads, in {output}/{best['order']}/best")


def _report(before: Any, after: Any, output: str, rows: int, as_json: bool, quiet: bool) -> None:
    from engine.spec.cost import model_cost

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
        raise EngineError("PyTorch is needed to rank and fine-tune and is not installed", hint="pip install 'headcount[prune]'")
