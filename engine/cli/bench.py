"""Measuring a model of one's own: the verbs of `headcount bench` that the wheel has; those of the suites come from a source checkout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from engine.cli.support import noting
from engine.errors import EngineError

app = typer.Typer(
    name="bench",
    help="Measure a model; a figure exists only after its correctness gate passed.",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain, as the other commands
    pretty_exceptions_enable=False,
    add_completion=False,
)

Source = Annotated[str, typer.Argument(metavar="MODEL", help="An engine directory, or any source `headcount convert` accepts.")]
Backend = Annotated[str, typer.Option("--backend", help="auto, cuda, triton, cpu or torch.")]
Dtype = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")]
Quantization = Annotated[str | None, typer.Option("--quantization", help="int8: weights as int8, the rest in --dtype.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Processor threads; the backend's own number by default.")]
Config = Annotated[str | None, typer.Option("--config", help="Configuration of the source, where it does not lie beside it.")]
Heads = Annotated[str | None, typer.Option("--heads", help="As for convert: heads to prune or keep.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
OutputJson = Annotated[Path | None, typer.Option("--output-json", help="Write the result here.")]
InputLen = Annotated[int, typer.Option("--input-len", min=1, help="Tokens of each prompt.")]
OutputLen = Annotated[int, typer.Option("--output-len", min=1, help="Tokens generated after it.")]
GeometryName = Annotated[str, typer.Option("--geometry", help="s1, the published model, or tiny, to try the tool.")]


@app.command()
def latency(
    model: Source,
    input_len: InputLen = 32,
    output_len: OutputLen = 128,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 8,
    num_iters_warmup: Annotated[int, typer.Option("--num-iters-warmup", min=0)] = 10,
    num_iters: Annotated[int, typer.Option("--num-iters", min=1)] = 30,
    output_json: OutputJson = None,
    config: Config = None,
    heads: Heads = None,
    backend: Backend = "auto",
    dtype: Dtype = "auto",
    quantization: Quantization = None,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Seconds from a batch of prompts to its last token."""
    import engine
    from engine.measure import latency as measured

    lengths, options = measured.Lengths(input_len, output_len), _given(config=config, heads=heads)
    load = noting(engine.load, quiet)
    with load(model, backend=backend, dtype=dtype, quantization=quantization, threads=threads, **options) as loaded:
        gate = measured.require_right(loaded, lengths)
        found = measured.latency(loaded, lengths, batch_size=batch_size, warmup=num_iters_warmup, iterations=num_iters, quiet=quiet)
        about = {"input_len": input_len, "output_len": output_len, "batch_size": batch_size}
        about |= measured.described(model, loaded, gate, options)
    for line in measured.latency_lines(found):
        print(line)
    _write_json(output_json, found | about)


@app.command()
def throughput(
    model: Source,
    num_prompts: Annotated[int, typer.Option("--num-prompts", min=1)] = 64,
    input_len: InputLen = 32,
    output_len: OutputLen = 128,
    output_json: OutputJson = None,
    config: Config = None,
    heads: Heads = None,
    backend: Backend = "auto",
    dtype: Dtype = "auto",
    quantization: Quantization = None,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Requests and tokens per second when all prompts are there at once."""
    import engine
    from engine.measure import latency as measured

    lengths, options = measured.Lengths(input_len, output_len), _given(config=config, heads=heads)
    load = noting(engine.load, quiet)
    with load(model, backend=backend, dtype=dtype, quantization=quantization, threads=threads, **options) as loaded:
        gate = measured.require_right(loaded, lengths)
        found = measured.throughput(loaded, lengths, num_prompts=num_prompts, quiet=quiet)
        about = {"input_len": input_len, "output_len": output_len} | measured.described(model, loaded, gate, options)
    print(measured.throughput_line(found))
    _write_json(output_json, found | about)


@app.command()
def flops(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="As for latency; without it the models of --geometry.")] = None,
    geometry: GeometryName = "s1",
    input_len: Annotated[int, typer.Option("--input-len", min=1, help="Tokens of a prefill.")] = 192,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 1,
    dtype: Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16, for the bytes.")] = "float32",
    config: Config = None,
    heads: Heads = None,
    as_json: Json = False,
) -> None:
    """What a model should cost beside its dense parent: FLOPs, parameters and bytes, from the spec alone."""
    from engine.formats.open import open_checkpoint
    from engine.measure import flops as counting

    if model is None:
        from bench.core import cases  # the geometries of papers: in a source checkout

        specs = cases.geometry_specs(cases.geometry(geometry))
    else:
        specs = counting.dense_and(open_checkpoint(model, **_given(config=config, heads=heads)).spec)
    found = counting.costs(specs, dtype=dtype, rows=input_len, batch=batch_size)
    if as_json:
        print(json.dumps(counting.to_json(found), indent=2))
        return
    console = Console()
    console.print(counting.table(found))
    if model is not None:
        console.print(counting.part_table(found["this model"]))


@app.command()
def startup(
    model: Annotated[str, typer.Argument(metavar="DIR", help="An engine directory.")],
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Processes measured, after one that fills the page cache.")] = 10,
    dtype: Annotated[str, typer.Option("--dtype", help="float32 or bfloat16.")] = "float32",
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Processor threads; the backend's own number by default.")] = None,
    output_json: Annotated[Path | None, typer.Option("--output-json", help="Write the result here.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Seconds from the start of a process to its first token, cpu backend, by stage; medians."""
    import engine
    from engine.measure.latency import GATE_TOKENS, Lengths, described, require_right
    from engine.measure.startup import PROMPT, lines, measure

    with noting(engine.load, quiet)(model, backend="cpu", dtype=dtype, threads=threads) as loaded:
        gate = require_right(loaded, Lengths(len(PROMPT), GATE_TOKENS))
        expected = loaded.generate(PROMPT, max_new_tokens=1).ids[0]
        about = described(model, loaded, gate, {})
    samples = measure(model, dtype, threads, rounds=rounds, expected=expected, quiet=quiet)
    for line in lines(samples):
        print(line)
    _write_json(output_json, {"samples": samples, **about})


def _given(**options: str | None) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _write_json(path: Path | None, value: dict[str, Any]) -> None:
    if path is None:
        return
    try:
        path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise EngineError(f"{path}: cannot be written: {error.strerror}") from None
