"""The `headcount` command: each verb is a few lines over engine.loading; exit status 0 success, 1 a failed job, 2 wrong usage."""

from __future__ import annotations

import io
import math
import sys
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

import typer

from engine.cli import export as cli_export
from engine.cli.prune import app as prune_app
from engine.cli.support import (
    Config,
    Heads,
    Json,
    ModelPath,
    Quiet,
    SourceOptions,
    Strict,
    encode,
    noting,
    parse_options,
    print_json,
    progress_bar,
    read_text,
    rows_of,
    show_notes,
    spinner,
)
from engine.errors import EngineError, InputError, Problem
from engine.runtime.options import GenerationOptions

app = typer.Typer(
    name="headcount",
    help="Run head-pruned Transformers: convert a trained checkpoint, inspect, verify, score, generate, export, benchmark.",
    no_args_is_help=True,
    rich_markup_mode=None,  # brackets in a help text are brackets
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(prune_app)

Source = Annotated[str, typer.Argument(metavar="SRC", help="A trained checkpoint: a file, or a directory holding exactly one.")]
Format = Annotated[str, typer.Option("--format", metavar="NAME", help="Source format; auto recognises it by its tensors.")]
Backend = Annotated[str, typer.Option("--backend", metavar="NAME", help="auto, cuda, triton, cpu or torch.")]
Dtype = Annotated[str, typer.Option("--dtype", metavar="NAME", help="auto, float32, bfloat16 or float16.")]
Quantization = Annotated[str | None, typer.Option("--quantization", metavar="NAME", help="int8: weights as int8, the rest in --dtype.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Processor threads; the backend's own number by default.")]

app.add_typer(cli_export.app, name="export")
SUITES = ("s1", "sparsity", "cpu", "encoder", "gpu", "sanitize", "report")  # verbs of bench/cli.py alone


@app.command()
def convert(
    source: Source,
    output: Annotated[str, typer.Argument(metavar="OUT", help="The engine directory to write.")],
    format: Format = "auto",
    config: Config = None,
    heads: Heads = None,
    option: SourceOptions = None,
    strict: Strict = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an engine directory that stands there.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Turn a trained checkpoint into a compact engine directory."""
    options = parse_options(option)
    import engine

    with spinner("Converting", quiet):
        report = engine.convert(source, output, format=format, config=config, heads=heads, force=force, strict=strict, **options)
    if as_json:
        print_json(report.to_dict())
    elif not quiet:
        kept, total = sum(map(len, report.kept)), sum(report.source_heads)
        print(f"{report.format} → {output}: {kept} of {total} heads kept, {report.parameters:,} parameters")
        for note in report.notes:
            print(f"  {note}")


@app.command()
def inspect(
    path: ModelPath,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Tokens of the prefill whose cost is shown.")] = 192,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Sequences side by side.")] = 1,
    dtype: Annotated[str, typer.Option("--dtype", metavar="NAME", help="Of weights and caches; auto = as stored.")] = "auto",
    config: Config = None,
    heads: Heads = None,
    option: SourceOptions = None,
    strict: Strict = False,
    plot: Annotated[str | None, typer.Option("--plot", metavar="PNG", help="Also draw heads per layer and cost shares.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show heads, parameters, memory and FLOPs of each layer."""
    options = parse_options(option)
    from engine.backends.choice import DTYPES
    from engine.cli.inspect_report import Report
    from engine.formats.open import read_path

    stored, found = read_path(path, options, config=config, heads=heads, hashed=True, strict=strict)
    show_notes(found.notes, quiet)
    report = Report(stored, rows=rows, batch=batch, dtype=None if dtype == "auto" else DTYPES.get(dtype, dtype))
    if plot is not None:
        report.plot(plot)
    if as_json:
        print_json(report.to_json())
    else:
        report.print()


@app.command()
def verify(
    path: ModelPath,
    against: Annotated[str, typer.Option("--against", metavar="SRC", help="The source; its pruned heads are computed and masked.")],
    tolerance: Annotated[float, typer.Option("--tolerance", min=0.0, help="Largest difference of a log-probability or a logit.")] = 2e-4,
    text: Annotated[str | None, typer.Option("--text", metavar="FILE", help="Compare on this text, not on random tokens.")] = None,
    config: Config = None,
    heads: Heads = None,
    option: SourceOptions = None,
    strict: Strict = False,
    backend: Backend = "auto",
    dtype: Dtype = "float32",
    quantization: Quantization = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare a model with its source run in full, layer by layer.

    With --text also what bfloat16 and int8 change in the likelihood of that text.
    """
    options = parse_options(option)
    import engine
    from engine.measure.precision import compare_precisions, print_precisions
    from engine.measure.verify import MOST_TOKENS, compare, sample_ids

    precisions = []
    with spinner("Comparing", quiet):
        with engine.load(path, backend=backend, dtype=dtype, quantization=quantization, check=True) as model:
            load = noting(partial(engine.load, against, backend="torch", dtype="float32", config=config, heads=heads), quiet)
            reference = load(masked=True, strict=strict, **options)
            with reference:
                most = model.spec.embedding.most_tokens or MOST_TOKENS
                ids = sample_ids(model) if text is None else [encode(model, read_text(text))[: min(MOST_TOKENS, most)]]
                found = compare(model, reference, ids)
        if text is not None:
            precisions = compare_precisions(lambda p: engine.load(path, backend=backend, **asdict(p)), lambda model: model.score(ids))
    passed = found.within(tolerance)
    if as_json:
        about = {"precisions": [line.to_dict() for line in precisions]} if precisions else {}
        print_json({**found.to_dict(), "tolerance": tolerance, "passed": passed, **about})
    else:
        found.print(tolerance)
        if precisions:
            print_precisions(precisions, f"{len(ids[0]) - 1:,} tokens")
    if not passed:
        if not quiet:
            print("if the model was converted with --heads, --config or --option, give verify the same", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def generate(
    path: ModelPath,
    prompt: Annotated[str, typer.Option("--prompt", metavar="TEXT", help="Text to continue; - reads standard input.")],
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="Tokens to add at most.")
    ] = GenerationOptions.max_new_tokens,
    temperature: Annotated[float, typer.Option("--temperature", help="0 is greedy.")] = GenerationOptions.temperature,
    top_k: Annotated[int | None, typer.Option("--top-k", help="Draw among the K most probable tokens.")] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", help="Draw among the fewest tokens that reach this share.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Same seed, same text; drawn by default.")] = None,
    stop: Annotated[list[str] | None, typer.Option("--stop", metavar="TEXT", help="Text to end at; may be given several times.")] = None,
    config: Config = None,
    heads: Heads = None,
    option: SourceOptions = None,
    strict: Strict = False,
    backend: Backend = "auto",
    dtype: Dtype = "auto",
    quantization: Quantization = None,
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Continue a prompt, printing each token as it comes."""
    options = parse_options(option)
    import engine

    words = read_text("-") if prompt == "-" else prompt
    sampling: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    sampling |= {"seed": seed, "stop": stop}
    load = noting(partial(engine.load, path, backend=backend, threads=threads, config=config, heads=heads, strict=strict, **options), quiet)
    with load(dtype=dtype, quantization=quantization) as model:
        if as_json:
            done = model.generate(words, **sampling)
            print_json({"prompt": words, "text": done.text, "ids": list(done.ids), "finish_reason": done.finish_reason, "seed": done.seed})
            return
        tokens = model.stream(words, **sampling)  # wrong arguments raise here, before anything is printed
        print(words, end="", flush=True)
        for token in tokens:
            print(token.text, end="", flush=True)
        print()


@app.command()
def score(
    path: ModelPath,
    file: Annotated[str, typer.Argument(metavar="FILE", help="Text; - reads standard input.")],
    batch: Annotated[int, typer.Option("--batch", min=1, help="Rows the text is cut into, each a fresh start; the tail is dropped.")] = 1,
    segment: Annotated[int | None, typer.Option("--segment", min=1, help="Tokens fed at a time.")] = None,
    drop_partial: Annotated[bool, typer.Option("--drop-partial", help="Leave out a row's last segment if not whole.")] = False,
    stride: Annotated[
        int | None,
        typer.Option("--stride", min=1, help="Tokens from window to window, for GPT-2; half its positions if the text is longer."),
    ] = None,
    config: Config = None,
    heads: Heads = None,
    option: SourceOptions = None,
    strict: Strict = False,
    backend: Backend = "auto",
    dtype: Dtype = "auto",
    quantization: Quantization = None,
    threads: Threads = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also in float32, with the change; of bfloat16 and int8 if none is named.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure the perplexity of a text.

    The protocol of arXiv 2110.03252: rows one after the other, each from the start of a stream, in segments; the mean is over all tokens.
    A model with positions reads a longer text in windows that overlap; a token counts in the first window that predicts it.
    """
    options = parse_options(option)
    if drop_partial and segment is None:
        raise typer.BadParameter("--drop-partial needs --segment")
    import engine
    from engine.measure.precision import USUAL, Precision, compare_precisions, print_precisions
    from engine.runtime.scoring import Score

    text = read_text(file)
    load = noting(partial(engine.load, path, backend=backend, threads=threads, config=config, heads=heads, strict=strict, **options), quiet)
    scored: list[Score] = []

    def measure(model: engine.Model) -> Score:
        ids = rows_of(encode(model, text), batch)
        if drop_partial and segment is not None:
            ids = ids[:, : 1 + (ids.shape[1] - 1) // segment * segment]
        if ids.shape[1] < 2:
            raise InputError(Problem(file, f"at least two tokens in each of {batch} rows", str(ids.shape[1])))
        most = model.spec.embedding.most_tokens
        apart = stride if stride is not None or most is None or ids.shape[1] - 1 <= most else most // 2 or None
        with progress_bar("Scoring", quiet) as progress:
            scored.append(model.score(ids, segment=segment, stride=apart, progress=progress))
        return scored[-1]

    chosen = Precision(dtype, quantization)
    if compare:
        named = chosen != Precision()
        found = compare_precisions(lambda p: load(**asdict(p)), measure, [chosen] if named else USUAL, named=named)
    else:
        with load(**asdict(chosen)) as model:
            measure(model)
    result = scored[-1]
    about = {"tokens": result.tokens, "windows": result.windows, "stride": result.stride}
    cut = "" if result.windows is None else f"  ({result.windows:,} windows, stride {result.stride:,})"
    bits = result.mean / math.log(2)
    if compare and as_json:
        print_json({**about, "precisions": [line.to_dict() for line in found]})
    elif compare:
        print_precisions(found, f"{result.tokens:,} tokens{cut}")
    elif as_json:
        print_json({**about, "nll": result.mean, "ppl": result.ppl, "bits_per_token": bits})
    else:
        print(f"{result.tokens:,} tokens  nll {result.mean:.4f}  ppl {result.ppl:.4f}  bits/token {bits:.4f}{cut}")


@app.command()
def env(as_json: Json = False) -> None:
    """Show the machine, its instruction sets, backends and versions."""
    from engine.measure.environment import environment

    found = environment()
    if as_json:
        print_json(found)
        return
    for name, value in found.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for key, item in value.items():
                print(f"  {key:12} {item if item is not None else 'not installed'}")
        else:
            shown = " ".join(value) if isinstance(value, list) else value
            print(f"{name:17} {shown if shown not in (None, '') else 'unknown'}")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def bench(context: typer.Context) -> None:
    """Time a model: latency, throughput, startup, flops; from a source checkout also the suites."""
    from engine.cli.bench import app as bench_app

    try:
        from bench.cli import app as bench_app  # these verbs, and those of the suites
    except ModuleNotFoundError as error:
        if error.name not in ("bench", "bench.cli"):
            raise
        if (named := [word for word in context.args if word in SUITES]) and named[0] == context.args[0]:
            text = f"{named[0]}: the suites beside other engines are not part of the installed package"
            raise EngineError(text, hint=f"in a source checkout: python -m bench {named[0]}") from None
    status = bench_app(args=context.args, prog_name="headcount bench", standalone_mode=False)
    if isinstance(status, int) and status:
        raise typer.Exit(status)


def main(arguments: list[str] | None = None) -> None:
    """The console script: an EngineError becomes one message on standard error and exit status 1."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without an arrow or an umlaut is no reason to fail
    try:
        app(args=arguments)
    except EngineError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    except MemoryError:
        print("EngineError: this needs more memory than there is", file=sys.stderr)
    else:
        return
    raise SystemExit(1)
