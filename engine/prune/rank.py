"""`rank`: scores.npy and ranking.json of a model on data; a run that was interrupted goes on where it was."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.checkpoint import Checkpoint
from engine.errors import InputError, Problem
from engine.prune.batches import batches
from engine.prune.encoder import TaggingEncoder, require_encoder
from engine.prune.files import data_identity, identity, output_folder, read_object, same_run, write_array, write_file, write_json
from engine.prune.importance import BY_DATA, Sums, finish, magnitude, random_scores
from engine.prune.select import order_of
from engine.prune.task import Data, DataOptions, describe, device_of, model_labels, read_data

Progress = Callable[[int, int], None]
METHODS = (*BY_DATA, "magnitude", "random")
SCORES, RANKING, STARTED, PARTIAL = "scores.npy", "ranking.json", "started.json", "partial.npz"
SAVE_SECONDS = 20.0  # work that an interruption may cost


@dataclass(frozen=True)
class RankOptions:
    """method: one of METHODS; reverse: the highest first, a control; batch: sequences, in the order of the file; seed: of random."""

    method: str = "gradient"
    reverse: bool = False
    batch: int = 32
    seed: int = 42
    device: str = "auto"

    def check(self) -> None:
        if self.method not in METHODS:
            raise InputError(Problem("method", ", ".join(METHODS), repr(self.method)))
        if self.batch < 1:
            raise InputError(Problem("batch", "at least one sequence", str(self.batch)))


def rank(
    checkpoint: Checkpoint,
    output: Path,
    paths: Sequence[str],
    data: DataOptions,
    options: RankOptions,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write scores.npy [layers, source heads] float64 (NaN for heads the model has not) and ranking.json into `output`; return the latter.

    With the same settings a finished ranking is read, an interrupted one goes on. Raises an EngineError for wrong data, options or numbers,
    and InputError where `output` holds another run, unless `force`.
    """
    options.check()
    output_folder(output)
    needs_data = options.method in BY_DATA
    if needs_data and not paths:
        raise InputError(Problem("data", f"labelled sentences for the method {options.method}", "none"))
    settings: dict[str, Any] = {name: value for name, value in asdict(options).items() if name != "device"}
    settings |= {"model": identity(checkpoint), "data": data_identity(paths), **describe(data)}
    if force:
        for name in (RANKING, STARTED, PARTIAL, SCORES):
            (output / name).unlink(missing_ok=True)
    if same_run(output / RANKING, settings):
        return read_object(output / RANKING)
    about: dict[str, Any] = {}
    if needs_data:
        device_of(options.device)
        found = read_data(paths, model_labels(checkpoint), checkpoint, data)
        require_encoder(checkpoint.spec)
        about = {"sentences": len(found.sentences), "words": sum(map(len, found.numbers))}
        if not same_run(output / STARTED, settings):
            write_json(output / STARTED, {"settings": settings})
        scores = scores_on(checkpoint, found, options, output / PARTIAL, progress)
    else:
        scores = scores_without_data(checkpoint, options)
    order = [list(head) for head in order_of(scores, checkpoint.spec)]
    write_array(output / SCORES, scores)
    numbers = [[None if np.isnan(score) else float(score) for score in row] for row in scores]
    result = {"settings": settings, **about, "scores": numbers, "order": order, "order_means": "[layer, head], first to prune first"}
    write_json(output / RANKING, result)
    for name in (PARTIAL, STARTED):
        (output / name).unlink(missing_ok=True)
    return result


def scores_without_data(checkpoint: Checkpoint, options: RankOptions) -> np.ndarray:
    spec = checkpoint.spec
    scores = random_scores(spec, options.seed) if options.method == "random" else magnitude(spec, dict(checkpoint.weights))
    return -scores if options.reverse else scores


def scores_on(
    checkpoint: Checkpoint, data: Data, options: RankOptions, partial: Path | None = None, progress: Progress | None = None
) -> np.ndarray:
    """Scores [layers, source heads] of a method that needs data; sums are kept in `partial` every SAVE_SECONDS."""
    encoder = TaggingEncoder(checkpoint, device_of(options.device))
    sums = Sums.of(checkpoint.spec) if partial is None else _read_partial(partial, Sums.of(checkpoint.spec))
    total, saved = -(-len(data.examples) // options.batch), time.monotonic()
    left = range(sums.batches * options.batch, len(data.examples))
    for batch in batches(data.examples, options.batch, encoder.device, left):
        BY_DATA[options.method](encoder, batch, sums)
        if progress is not None:
            progress(sums.batches, total)
        if partial is not None and time.monotonic() - saved > SAVE_SECONDS:
            _write_partial(partial, sums)
            saved = time.monotonic()
    scores = finish(options.method, sums)
    return -scores if options.reverse else scores


def _write_partial(path: Path, sums: Sums) -> None:
    content = io.BytesIO()
    np.savez(content, values=sums.values, weight=sums.weight, batches=sums.batches)
    write_file(path, content.getvalue())


def _read_partial(path: Path, fresh: Sums) -> Sums:
    """Sums as they were saved; anything else that stands there is started over."""
    try:
        with np.load(path, allow_pickle=False) as saved:
            sums = Sums(saved["values"], float(saved["weight"]), int(saved["batches"]))
    except Exception:  # damaged archives make NumPy raise more than ValueError
        return fresh
    return sums if sums.values.shape == fresh.values.shape else fresh
