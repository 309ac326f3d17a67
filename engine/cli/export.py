"""`headcount export`: a model written back in a layout other programs read."""

from __future__ import annotations

from typing import Annotated

import typer

from engine.cli.support import Config, Heads, Json, ModelPath, Quiet, SourceOptions, parse_options, print_json, spinner

app = typer.Typer(help="Write a model in a layout other programs read.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def hf(
    path: ModelPath,
    output: Annotated[str, typer.Argument(metavar="OUT", help="The directory to write.")],
    config: Config = None,
    heads: Heads = None,
    option: SourceOptions = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an exported directory that stands there.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write what transformers 4 writes: config.json with pruned_heads, model.safetensors, tokenizer.json."""
    options = parse_options(option)
    from engine.export.hugging_face import export_hf

    with spinner("Exporting", quiet):
        report = export_hf(path, output, config=config, heads=heads, force=force, **options)
    if as_json:
        print_json(report.to_dict())
    elif not quiet:
        gone = sum(map(len, report.pruned_heads.values()))
        print(f"{report.architecture} → {output}: {report.tensors} tensors, {gone} heads in pruned_heads")
        for note in report.notes:
            print(f"  {note}")


@app.command()
def onnx(
    path: ModelPath,
    output: Annotated[str, typer.Argument(metavar="OUT", help="The .onnx file to write.")],
    config: Config = None,
    heads: Heads = None,
    option: SourceOptions = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that stands there.")] = False,
    quiet: Quiet = False,
) -> None:
    """Write an encoder for ONNX Runtime, OpenVINO and others, each layer with its own number of heads."""
    options = parse_options(option)
    from engine.export.onnx import export_onnx

    with spinner("Exporting", quiet):
        written = export_onnx(path, output, config=config, heads=heads, force=force, **options)
    if not quiet:
        print(f"{written}: {written.stat().st_size:,} bytes")
