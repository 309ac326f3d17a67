"""The verbs of `python -m bench` and `headcount bench`; exit status 1 where a gate did not pass, and then no figure of it."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from engine.cli import bench as measures
from engine.cli.bench import Backend, Dtype, GeometryName, Json, Quiet, Threads
from engine.errors import EngineError, InputError, Problem

app = typer.Typer(
    name="bench",
    help="Benchmarks; a figure exists only after its correctness gate passed.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.registered_commands += measures.app.registered_commands  # latency, throughput, flops, startup

Batches = Annotated[list[int] | None, typer.Option("--batch", min=1, help="Sequences side by side; may be given several times; 1 and 4.")]
Parts = Annotated[list[str] | None, typer.Option("--part", help="layers, or model with its vocabulary; may be given twice; layers.")]
Rounds = Annotated[int | None, typer.Option("--rounds", min=1, help="Samples of each model; 20.")]
Quick = Annotated[bool, typer.Option("--quick", help="Few rounds, and nothing written unless --out is given.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder of the rows and the picture; bench/results by default.")]

DOCUMENTS = ("README.md", "docs/performance.md")


@app.command()
def s1(
    geometry: GeometryName = "s1",
    part: Parts = None,
    batch: Batches = None,
    backend: Backend = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
    rounds: Rounds = None,
    quick: Quick = False,
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """The published model of arXiv 2110.03252, dense against masked against compact, with its three published lists of kept heads."""
    from bench.core import cases

    shape = cases.geometry(geometry)
    _compare("s1", shape, cases.kept_lists(shape), part, batch, (backend, dtype, threads), _plan(rounds, quick), _folder(out, quick), quiet)


@app.command()
def sparsity(
    levels: Annotated[str, typer.Option("--levels", help="Percentages of heads removed from every layer alike.")] = "0,25,50,75",
    geometry: GeometryName = "s1",
    part: Parts = None,
    batch: Batches = None,
    backend: Backend = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
    rounds: Rounds = None,
    quick: Quick = False,
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Latency against the share of heads removed, the same share of every layer."""
    from bench.core import cases

    shape = cases.geometry(geometry)
    try:
        wanted = [int(level) for level in levels.split(",")]
    except ValueError:
        raise InputError(Problem("levels", "percentages separated by commas", repr(levels))) from None
    _compare(
        "sparsity",
        shape,
        cases.level_lists(shape, wanted),
        part,
        batch,
        (backend, dtype, threads),
        _plan(rounds, quick),
        _folder(out, quick),
        quiet,
    )


@app.command()
def cpu(
    geometry: GeometryName = "s1",
    work: Annotated[list[str] | None, typer.Option("--work", help="score, decode, share, attention, bandwidth, growth; all.")] = None,
    kept: Annotated[list[int] | None, typer.Option("--kept", help="Kept heads; every list of the geometry, and all heads.")] = None,
    peer: Annotated[list[str] | None, typer.Option("--peer", help="Engine, or engine:dtype; ours always take part. All.")] = None,
    part: Parts = None,
    batch: Annotated[list[int] | None, typer.Option("--batch", min=1, help="Sequences of decode; 1, 16 and 64.")] = None,
    threads: Annotated[list[int] | None, typer.Option("--threads", min=1, help="May be given several times; 1 and 2.")] = None,
    rounds: Rounds = None,
    quick: Quick = False,
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Our native kernels beside PyTorch, torch.compile, ONNX Runtime, OpenVINO and the published algorithm, on the same weights."""
    from bench.suites.cpu import run as cpu_run

    asked = cpu_run.CpuRequest.of(geometry, work, kept, peer, part, batch, threads, rounds, quick)
    cpu_run.run(asked, _folder(out, quick), quiet=quiet)


@app.command()
def encoder(
    geometry: Annotated[str, typer.Option("--geometry", help="bert-base, or tiny, to try the tool.")] = "bert-base",
    work: Annotated[list[str] | None, typer.Option("--work", help="one text, or a ragged batch; both.")] = None,
    peer: Annotated[list[str] | None, typer.Option("--peer", help="Engine, or engine:dtype; all.")] = None,
    threads: Annotated[list[int] | None, typer.Option("--threads", min=1, help="May be given several times; 1 and 2.")] = None,
    rounds: Rounds = None,
    quick: Quick = False,
    out: Out = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """A dense and a pruned encoder, ours beside PyTorch, transformers, ONNX Runtime, OpenVINO and CTranslate2, on the same weights."""
    from bench.suites.encoder import run as encoder_run

    asked = encoder_run.EncoderRequest.of(geometry, work, peer, threads, rounds, quick)
    encoder_run.run(asked, _folder(out, quick), quiet=quiet, as_json=as_json)


@app.command()
def report(
    check: Annotated[bool, typer.Option("--check", help="Fail when a table differs from its rows.")] = False,
    write: Annotated[bool, typer.Option("--write", help="Bring the tables up to date.")] = False,
    document: Annotated[Path | None, typer.Option("--document", help="README.md and docs/performance.md by default.")] = None,
    results: Annotated[Path | None, typer.Option("--results", help="Folder of the rows; bench/results by default.")] = None,
) -> None:
    """Make the tables between `<!-- bench:NAME -->` markers from their rows."""
    from bench.core import document as documents
    from bench.core.rows import RESULTS, ROOT
    from bench.suites.tables import TABLES

    results = results or RESULTS
    if check == write:
        raise typer.BadParameter("give --check or --write")
    for each in [document] if document else [ROOT / name for name in DOCUMENTS]:
        if check:
            print(f"{each.name}: {documents.check(each, TABLES, results)} tables agree with their rows")
        else:
            print(f"{each.name}: {'brought up to date' if documents.write(each, TABLES, results) else 'up to date'}")


@app.command()
def gpu(
    out: Annotated[Path, typer.Option("--out", help="Folder of gpu.json, gpu.md and gpu.log.")],
    section: Annotated[list[str] | None, typer.Option("--section", help="card, decode, attention, score, token, …; all.")] = None,
    backend: Annotated[list[str] | None, typer.Option("--backend", help="cuda, triton, torch, compiled (PyTorch's own); all.")] = None,
    batch: Annotated[list[int] | None, typer.Option("--batch", min=1, help="Rows of a decode step; 1, 16, 4, 64 and 256.")] = None,
    rows: Annotated[list[int] | None, typer.Option("--rows", min=1, help="Rows of attention; 3072, 12288, 192 and 768.")] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="bfloat16, float16 or float32.")] = "bfloat16",
    minutes: Annotated[float, typer.Option("--minutes", min=0.1, help="Whatever still runs then is ended.")] = 8.5,
    interpret: Annotated[
        bool, typer.Option("--interpret", help="In Triton's interpreter and the CUDA emulator: tries the tool, measures nothing.")
    ] = False,
    tiny: Annotated[bool, typer.Option("--tiny", help="Small sizes.")] = False,
) -> None:
    """One GPU: what the card can do, decode steps and whole models, attention of prefill, all beside PyTorch's own.

    Each section by each backend is a process of its own with a limit; files are written anew after each figure.
    """
    if dtype not in ("bfloat16", "float16", "float32"):
        raise InputError(Problem("dtype", "bfloat16, float16 or float32", repr(dtype)))
    if interpret and not tiny:
        raise InputError(Problem("--interpret", "together with --tiny: the sizes of a GPU take days", "alone"))
    if importlib.util.find_spec("triton") is None or importlib.util.find_spec("torch") is None:
        raise EngineError(Problem("triton", "PyTorch and Triton", "not both installed"), hint="pip install 'headcount[gpu]'")
    from bench.suites.gpu import plan, run

    dtype = "float16" if interpret else dtype  # what Triton's interpreter and the CUDA kernels both compute
    asked = plan.GpuRequest(str(out.resolve()), dtype, interpret, tiny, tuple(batch or ()), tuple(rows or ()))
    found = run.measure(asked, plan.parts_of(asked, section or (), backend or ()), minutes)
    print(found.table())
    if found.failed or found.died:
        died = [f"{name}: its process died" for name in found.died]
        raise EngineError(["what these guard or are has no figure:", *found.failed, *died])


@app.command()
def sanitize(
    out: Annotated[Path, typer.Option("--out", help="Folder of TOOL.txt and TOOL.xml.")],
    tool: Annotated[list[str] | None, typer.Option("--tool", help="memcheck, synccheck or racecheck; all.")] = None,
    minutes: Annotated[float | None, typer.Option("--minutes", min=0.1, help="The most each tool may take.")] = None,
) -> None:
    """Eight tests of the GPU kernels on a GPU under compute-sanitizer: memory out of bounds, barriers, races in shared memory."""
    from bench.suites.gpu import sanitize as tools

    found = tools.sanitize(out, tool or list(tools.TOOLS), None if minutes is None else 60 * minutes)
    for lead in found.leads:
        print(f"a lead, no failure: {lead}")
    if found.failures:
        raise EngineError(["compute-sanitizer is not content:", *found.failures])
    print(f"{', '.join(tool or tools.TOOLS)}: no failure: {out}")


def _compare(
    name: str,
    shape: Any,
    lists: dict[int, Any],
    part: list[str] | None,
    batch: list[int] | None,
    engine: tuple[str, str, int | None],
    plan: Any,
    out: Path | None,
    quiet: bool,
) -> None:
    """Measure the parts in turn; rows to out/NAME.jsonl, a picture of each part beside them, the tables to the screen."""
    from bench.core import cases, picture, rows
    from bench.core.engines import EngineSettings
    from bench.suites import compare
    from bench.suites.speedups import speedups
    from engine.measure.clock import bar
    from engine.measure.provenance import provenance

    parts = part or ["layers"]
    if unknown := [p for p in parts if p not in ("layers", "model")]:
        raise InputError(Problem("part", "layers or model", ", ".join(unknown)))
    settings = EngineSettings.resolved(*engine)
    labels = {"bench": name, "geometry": shape.name, **provenance()}
    failed: list[str] = []
    for each in parts:
        with bar("Drawing weights", 1, quiet=quiet):
            engines = compare.line_up(cases.dense_model(shape, vocabulary=each == "model"), lists)
        wanted = list(compare.cases_of([each], batch or [1, 4], shape.rows))
        found = compare.measure(engines, wanted, settings, plan, labels=labels, quiet=quiet)
        failed += found.failed
        print(speedups(found.rows))
        if out is not None:
            rows.replace_rows(out / f"{name}.jsonl", found.tried, found.rows)
            if found.rows:
                picture.draw(found.rows, out / f"{name}-{each}.png")
    if failed:
        raise EngineError(["gates did not pass, and what they guard has no figure:", *failed])


def _plan(rounds: int | None, quick: bool) -> Any:
    from bench.suites.compare import ComparisonPlan

    plan = ComparisonPlan(rounds=3, warmup=1, decoded=2) if quick else ComparisonPlan()
    return plan if rounds is None else replace(plan, rounds=rounds)


def _folder(out: Path | None, quick: bool) -> Path | None:
    from bench.core.rows import RESULTS

    return out or (None if quick else RESULTS)


def main() -> None:
    """`python -m bench`: EngineError becomes one message on standard error and exit status 1."""
    try:
        app(prog_name="python -m bench")
    except EngineError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except ModuleNotFoundError as error:  # a suite compares with PyTorch, draws with matplotlib
        if error.name is None or error.name.split(".")[0] in ("bench", "engine", "engine_kernels"):
            raise
        print(f"EngineError: {error.name} is not installed\n  pip install '.[bench]' in this checkout, or make setup", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
