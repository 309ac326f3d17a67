"""The `headcount` command: each verb is a few lines over engine.api; exit status 0 success, 1 a failed job, 2 wrong usage."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from engine.errors import EngineError, InputError, Problem

app = typer.Typer(
    name="headcount",
    help="Run head-pruned Transformers: convert a trained checkpoint, inspect, verify, score, generate, benchmark.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Source = Annotated[str, typer.Argument(metavar="SRC", help="A trained checkpoint: a file, or a directory holding exactly one.")]
ModelPath = Annotated[str, typer.Argument(metavar="DIR", help="An engine directory, or any source `convert` accepts.")]
Config = Annotated[str | None, typer.Option("--config", help="Configuration of the source, where it does not lie beside it.")]
Heads = Annotated[str | None, typer.Option("--heads", help="JSON {layer: [pruned]}, JSON lists of kept heads, or a mask .npy/.pt.")]
Format = Annotated[str, typer.Option("--format", help="Source format; auto recognises it by its tensors.")]
Settings = Annotated[
    list[str] | None, typer.Option("--option", "-o", metavar="NAME=VALUE", help="A value the source lacks, e.g. mem_length=192.")
]
Backend = Annotated[str, typer.Option("--backend", help="auto, cuda, triton, cpu or torch.")]
Dtype = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Processor threads; the backend's own number by default.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress and no remarks.")]


@app.command()
def convert(
    source: Source,
    output: Annotated[str, typer.Argument(metavar="OUT", help="The engine directory to write.")],
    format: Format = "auto",
    config: Config = None,
    heads: Heads = None,
    option: Settings = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an engine directory that stands there.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Turn a trained, gated or masked checkpoint into a compact engine directory."""
    import engine

    with _working("Converting", quiet):
        report = engine.convert(source, output, format=format, config=config, heads=heads, force=force, **_options(option))
    if as_json:
        _print_json(report.to_dict())
    elif not quiet:
        kept, total = sum(map(len, report.kept)), sum(report.source_heads)
        print(f"{report.format} → {output}: {kept} of {total} heads kept, {report.parameters:,} parameters")
        for note in report.notes:
            print(f"  {note}")


@app.command()
def inspect(
    path: ModelPath,
    config: Config = None,
    heads: Heads = None,
    option: Settings = None,
    plot: Annotated[str | None, typer.Option("--plot", metavar="PNG", help="Also draw heads per layer and cost shares.")] = None,
    as_json: Json = False,
) -> None:
    """Heads kept per layer, parameters, memory and FLOPs, from the spec alone."""
    from engine.api import open_checkpoint
    from engine.inspect_report import Report

    report = Report(open_checkpoint(path, config=config, heads=heads, **_options(option)))
    if as_json:
        _print_json(report.to_json())
    else:
        report.print(Console())
    if plot is not None:
        report.plot(plot)


@app.command()
def verify(
    path: ModelPath,
    against: Annotated[str, typer.Option("--against", metavar="SRC", help="The source, run with its gates as masks and nothing removed.")],
    tolerance: Annotated[float, typer.Option("--tolerance", min=0.0, help="Largest difference of a log-probability.")] = 2e-4,
    text: Annotated[str | None, typer.Option("--text", metavar="FILE", help="Compare on this text instead of random tokens.")] = None,
    config: Config = None,
    heads: Heads = None,
    option: Settings = None,
    backend: Backend = "auto",
    dtype: Dtype = "float32",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare a compact model with its source, layer by layer; exit status 1 beyond the tolerance."""
    import engine
    from engine.verify import compare, sample_ids

    with _working("Comparing", quiet):
        with engine.load(path, backend=backend, dtype=dtype, check=True) as model:
            masked = engine.load(against, backend="torch", dtype="float32", config=config, heads=heads, masked=True, **_options(option))
            with masked:
                ids = sample_ids(model) if text is None else _rows(model, _read(text), batch=1)[:, :4096]
                found = compare(model, masked, ids)
    passed = found.within(tolerance)
    if as_json:
        _print_json({**found.to_dict(), "tolerance": tolerance, "passed": passed})
    else:
        table = Table("after", "max |difference|")
        for index, difference in enumerate(found.layers):
            table.add_row("embedding" if index == 0 else f"layer {index - 1}", f"{difference:.2e}")
        table.add_row("log-probabilities", f"{found.log_probs:.2e}")
        Console().print(table)
        print(f"nll per token {found.nll:+.2e} on {found.tokens} tokens; {'within' if passed else 'BEYOND'} {tolerance:g}")
    if not passed:
        raise typer.Exit(1)


@app.command()
def generate(
    path: ModelPath,
    prompt: Annotated[str, typer.Option("--prompt", help="Text to continue; - reads standard input.")],
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1)] = 128,
    temperature: Annotated[float, typer.Option("--temperature", help="0 is greedy.")] = 0.0,
    top_k: Annotated[int | None, typer.Option("--top-k")] = None,
    top_p: Annotated[float | None, typer.Option("--top-p")] = None,
    seed: Annotated[int | None, typer.Option("--seed")] = None,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="Text to end at; may be given several times.")] = None,
    config: Config = None,
    heads: Heads = None,
    option: Settings = None,
    backend: Backend = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Continue a prompt, token by token as they come."""
    import engine

    words = sys.stdin.read() if prompt == "-" else prompt
    sampling: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed, "stop": stop}
    with engine.load(path, backend=backend, dtype=dtype, threads=threads, config=config, heads=heads, **_options(option)) as model:
        if as_json:
            done = model.generate(words, max_new_tokens=max_new_tokens, **sampling)
            _print_json({"prompt": words, "text": done.text, "ids": list(done.ids), "finish_reason": done.finish_reason})
            return
        print(words, end="", flush=True)
        for token in model.stream(words, max_new_tokens=max_new_tokens, **sampling):
            print(token.text, end="", flush=True)
        print()


@app.command()
def score(
    path: ModelPath,
    file: Annotated[str, typer.Argument(metavar="FILE", help="Text; - reads standard input.")],
    batch: Annotated[int, typer.Option("--batch", min=1, help="Rows the text is cut into; each starts afresh, the tail is dropped.")] = 1,
    segment: Annotated[int | None, typer.Option("--segment", min=1, help="Tokens fed at a time.")] = None,
    drop_partial: Annotated[bool, typer.Option("--drop-partial", help="Leave out a row's last segment when it is not whole.")] = False,
    config: Config = None,
    heads: Heads = None,
    option: Settings = None,
    backend: Backend = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Perplexity of a text: rows, each from the start of a stream, in segments, token-weighted mean (the protocol of arXiv 2110.03252)."""
    import math

    import engine

    if drop_partial and segment is None:
        raise typer.BadParameter("--drop-partial needs --segment")
    with engine.load(path, backend=backend, dtype=dtype, threads=threads, config=config, heads=heads, **_options(option)) as model:
        ids = _rows(model, _read(file), batch=batch)
        if drop_partial and segment is not None:
            ids = ids[:, : 1 + (ids.shape[1] - 1) // segment * segment]
        if ids.shape[1] < 2:
            raise InputError(Problem(file, f"at least two tokens in each of {batch} rows", f"{ids.shape[1]}"))
        with _working("Scoring", quiet):
            result = model.score(ids, segment=segment)
    tokens = ids.shape[0] * (ids.shape[1] - 1)
    figures = {"tokens": tokens, "nll": result.mean, "ppl": result.ppl, "bits_per_token": result.mean / math.log(2)}
    if as_json:
        _print_json(figures)
    else:
        print(f"{tokens:,} tokens  nll {result.mean:.4f}  ppl {result.ppl:.4f}  bits/token {figures['bits_per_token']:.4f}")


@app.command()
def env(as_json: Json = False) -> None:
    """The machine, its instruction sets, the backends and versions."""
    from engine.environment import environment

    found = environment()
    if as_json:
        _print_json(found)
        return
    for name, value in found.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for key, item in value.items():
                print(f"  {key:12} {item if item is not None else 'not installed'}")
        else:
            print(f"{name:17} {' '.join(value) if isinstance(value, list) else value}")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def bench(context: typer.Context) -> None:
    """Benchmarks: latency, throughput, flops, s1 (needs the bench folder of the source tree)."""
    try:
        from bench.cli import app as bench_app
    except ModuleNotFoundError as error:
        if error.name not in ("bench", "bench.cli"):
            raise
        raise EngineError("the benchmarks are not part of the installed package", hint="run this from a source checkout") from None
    bench_app(args=context.args, prog_name="headcount bench", standalone_mode=False)


def main() -> None:
    """The console script: EngineError becomes one message on standard error and exit status 1."""
    try:
        app()
    except EngineError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _options(pairs: list[str] | None) -> dict[str, Any]:
    """NAME=VALUE with JSON values; what is not JSON is text."""
    options: dict[str, Any] = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise typer.BadParameter(f"--option takes NAME=VALUE, not {pair!r}")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def _read(file: str) -> str:
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(Problem(file, "a readable UTF-8 text", str(error))) from None


def _rows(model: Any, text: str, *, batch: int) -> Any:
    """Token ids [batch, T] of a text cut into rows one after the other, the tail dropped."""
    import numpy as np

    ids = np.asarray(model.tokenizer.encode(text), dtype=np.int64)
    length = len(ids) // batch
    return ids[: batch * length].reshape(batch, length)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def _working(what: str, quiet: bool) -> Any:
    """A spinner on standard error while something longer runs; nothing where that is not a terminal."""
    console = Console(stderr=True, quiet=quiet or not sys.stderr.isatty())
    return console.status(f"{what} …")
