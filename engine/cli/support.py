"""What the verbs share: arguments, options of a source, texts, rows of token ids, progress on standard error."""

from __future__ import annotations

import inspect
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.errors import InputError, Problem

if TYPE_CHECKING:  # `headcount --help` answers without it
    import numpy as np

    from engine.checkpoint import Checkpoint


ModelPath = Annotated[str, typer.Argument(metavar="DIR", help="An engine directory, or any source `convert` accepts.")]
Config = Annotated[str | None, typer.Option("--config", metavar="FILE", help="Configuration of the source, if not beside it.")]
Heads = Annotated[
    str | None, typer.Option("--heads", metavar="FILE", help="JSON {layer: [pruned]}, JSON lists of kept heads, or .npy/.pt.")
]
SourceOptions = Annotated[
    list[str] | None, typer.Option("--option", "-o", metavar="NAME=VALUE", help="A value the source lacks, e.g. mem_length=192.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse a key of the configuration that is not known; else it is noted.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress and no remarks.")]


def parse_options(pairs: list[str] | None) -> dict[str, Any]:
    """NAME=VALUE with JSON values; what is not JSON is text. Raises BadParameter, wrong usage."""
    from engine import loading as api

    taken = {name for function in (api.load, api.convert) for name in inspect.signature(function).parameters}
    options: dict[str, Any] = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise typer.BadParameter(f"--option takes NAME=VALUE, not {pair!r}")
        if name in taken or name in options:
            raise typer.BadParameter(f"--option {name}: " + ("given twice" if name in options else "not a setting of a source"))
        try:
            options[name] = json.loads(value)
        except (ValueError, RecursionError):
            options[name] = value
    return options


def show_notes(notes: Iterable[str], quiet: bool) -> None:
    """What was guessed or not used in reading a source, a line each on standard error."""
    for note in () if quiet else notes:
        print(f"note: {note}", file=sys.stderr)


def open_noting(path: str, options: dict[str, Any], quiet: bool) -> Checkpoint:
    """As engine.formats.open.open_checkpoint, with the notes shown."""
    from engine.formats.open import read_path

    checkpoint, report = read_path(path, options)
    show_notes(report.notes, quiet)
    return checkpoint


def noting(load: Callable[..., Any], quiet: bool) -> Callable[..., Any]:
    """`load`, which gives a Model, with its notes shown; each once, however often it loads."""
    shown: set[str] = set()

    def loaded(*arguments: Any, **settings: Any) -> Any:
        model = load(*arguments, **settings)
        show_notes([note for note in model.explain().notes if note not in shown], quiet)
        shown.update(model.explain().notes)
        return model

    return loaded


def read_text(file: str) -> str:
    """The text of a file, or of standard input for -; raises InputError."""
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: bytes that are not UTF-8, a NUL byte in the name
        raise InputError(Problem(repr(file), "a readable UTF-8 text", str(error))) from None


def encode(model: Any, text: str) -> np.ndarray:
    """Token ids int64 [T] of a text; raises InputError where the model has no tokenizer or does not know a character."""
    if model.tokenizer is None:
        hint = "convert the source again with --option vocab=FILE, one token per line in the order of their ids"
        raise InputError(Problem("text", "a model with a tokenizer", "one without"), hint=hint)
    import numpy as np

    return np.asarray(model.tokenizer.encode(text), dtype=np.int64)


def rows_of(ids: np.ndarray, batch: int) -> np.ndarray:
    """ids [T] → [batch, T // batch]: rows one after the other, the tail dropped."""
    length = len(ids) // batch
    return ids[: batch * length].reshape(batch, length)


def print_json(value: Any) -> None:
    """Print strict JSON; what it has no number for, an infinite perplexity, is null."""
    print(json.dumps(_finite(value), indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def spinner(what: str, quiet: bool) -> Any:
    """A sign of life on standard error; nothing where that is not a terminal."""
    from rich.console import Console

    return Console(stderr=True, quiet=quiet or not sys.stderr.isatty()).status(f"{what} …")


@contextmanager
def progress_bar(what: str, quiet: bool) -> Iterator[Any]:
    """A function (done, total) that moves a bar on standard error; None where that is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def progress_bars(quiet: bool) -> Iterator[Any]:
    """A function (what) that begins a bar and returns its (done, total); one that gives None where that is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda what: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:

        def begin(what: str) -> Any:
            task = bars.add_task(what, total=None)
            return lambda done, total: bars.update(task, completed=done, total=total, visible=done < total)

        yield begin
