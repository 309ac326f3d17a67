"""`trials`: fine-tune without the k lowest heads for every k asked, choose k on dev, report it on test (arXiv 2108.08375 §4).

OUT/settings.json, dense/ (the model fine-tuned whole), for each order of heads NAME/ scores.npy, k01/result.json …, best/; summary.json.
Every part is whole or not there, so a run that stopped goes on with what is missing.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from engine import checkpoint as checkpoints
from engine.checkpoint import Checkpoint
from engine.errors import EngineError, InputError, Problem
from engine.prune.apply import apply_heads
from engine.prune.data.labels import LabelSet, labels_of, read_labels
from engine.prune.data.read import read_sentences
from engine.prune.encoder import TaggingEncoder, require_encoder, with_labels
from engine.prune.evaluate import evaluate
from engine.prune.files import data_identity, identity, output_folder, read_object, same_run, write_array, write_json
from engine.prune.importance import BY_DATA
from engine.prune.masks import read_scores
from engine.prune.rank import PARTIAL, SCORES, RankOptions, scores_on, scores_without_data
from engine.prune.select import COMBINATIONS, Head, combine, order_of
from engine.prune.task import Data, DataOptions, describe, device_of, prepare
from engine.prune.train import TrainOptions, fine_tune

Progress = Callable[[int, int], None]
SETTINGS, RESULT, SUMMARY, MODEL, BEST, TRAINING = "settings.json", "result.json", "summary.json", "model", "best", "training.pt"
CONTROLS = {"random": RankOptions("random"), "highest": RankOptions(reverse=True)}
STARTS = ("pretrained", "fine-tuned")


@dataclass(frozen=True)
class Files:
    """Labelled sentences: to train on, to rank heads and choose k on, to report on; sources: rank on these instead of dev, one by one."""

    train: Sequence[str]
    dev: Sequence[str]
    test: Sequence[str] = ()
    sources: Sequence[str] = ()
    labels: str | None = None


@dataclass(frozen=True)
class TrialOptions:
    """counts: the k to try, ascending; controls: further orders, of CONTROLS; combine: sd, md or ec (try each source's ranking);
    start: weights of every trial; stop_on_drop: no larger k after one whose dev score is below the one before it."""

    counts: tuple[int, ...] = tuple(range(1, 13))
    ranking: RankOptions = field(default_factory=RankOptions)
    controls: tuple[str, ...] = ()
    combine: str = "sd"
    start: str = "pretrained"
    stop_on_drop: bool = False
    device: str = "auto"
    limits: tuple[int | None, int | None, int | None] = (None, None, None)  # first sentences of each train, dev, test file
    train: TrainOptions = field(default_factory=TrainOptions)

    def check(self, heads: int) -> None:
        """Raises InputError with everything that is wrong for a model of so many heads."""
        problems = []
        if not self.counts or list(self.counts) != sorted(set(self.counts)) or self.counts[0] < 1 or self.counts[-1] >= heads:
            problems.append(Problem("counts", f"ascending numbers from 1 to {heads - 1}, one head being left", str(list(self.counts))))
        for name, value, known in (("combine", self.combine, (*COMBINATIONS, "ec")), ("start", self.start, STARTS)):
            if value not in known:
                problems.append(Problem(name, ", ".join(known), repr(value)))
        problems += [Problem("control", ", ".join(CONTROLS), repr(name)) for name in self.controls if name not in CONTROLS]
        if problems:
            raise InputError(problems)
        self.train.check()
        self.ranking.check()


class Trials:
    """One run: the task read, the dense model trained, then the trials of each order."""

    def __init__(self, checkpoint: Checkpoint, output: Path, files: Files, reading: DataOptions, options: TrialOptions) -> None:
        options.check(sum(layer.attention.heads for layer in checkpoint.spec.layers))
        self.output, self.options = output_folder(output), options
        self.device = device_of(options.device)
        read = partial(read_sentences, format=reading.format, encoding=reading.encoding)
        sentences = [read(f, limit=n) for f, n in zip((files.train, files.dev), options.limits, strict=False)]
        whole = read(files.train)  # a limit cuts the training, not the task
        self.labels: LabelSet = labels_of(whole) if files.labels is None else read_labels(files.labels, reading.encoding)
        self.base = with_labels(checkpoint, self.labels.names, options.train.seed)
        require_encoder(self.base.spec)
        self.train, self.dev = (prepare(part, self.labels, self.base, reading) for part in sentences)
        self.test: Data | None = None
        if files.test:
            self.test = prepare(read(files.test, limit=options.limits[2]), self.labels, self.base, reading)
        self.sources = [prepare(read(f, limit=options.limits[1]), self.labels, self.base, reading) for f in files.sources] or [self.dev]
        self.settings = {
            "model": identity(checkpoint),
            "data": {name: data_identity(getattr(files, name)) for name in ("train", "dev", "test", "sources")},
            "sentences": {"train": len(self.train.sentences), "dev": len(self.dev.sentences)},
            "labels": list(self.labels.names),
            **describe(reading),
            **{name: value for name, value in asdict(options).items() if name in ("start", "limits", "train")},
        }

    def run(self, report: Callable[[str], Any]) -> dict[str, Any]:
        """Train what is missing and return the summary; report(what) gives the progress function of each fine-tuning and ranking.

        Raises InputError where `output` holds a run with other settings.
        """
        if not same_run(self.output / SETTINGS, self.settings):
            write_json(self.output / SETTINGS, {"settings": self.settings})
        dense = self._dense(report)
        orders = [self._order(name, scores, report) for name, scores in self._rankings(report)]
        chosen = [order["best"] | {"order": order["order"]} for order in orders if order["order"] not in CONTROLS]
        best = max(chosen, key=lambda trial: float(trial["dev"]["score"]))
        summary = {"settings": self.settings, "dense": dense, "best": best, "orders": orders}
        write_json(self.output / SUMMARY, summary)
        return summary

    def _dense(self, report: Callable[[str], Any]) -> dict[str, Any]:
        """k = 0: the whole model, which heads are ranked on."""
        folder = self.output / "dense"
        if not (folder / RESULT).exists():
            result, trained = self._fine_tune(self.base, [], folder, report("dense"))
            checkpoints.save(trained, folder / MODEL, force=(folder / MODEL).exists())
            write_json(folder / RESULT, result)
        return read_object(folder / RESULT)

    def _rankings(self, report: Callable[[str], Any]) -> list[tuple[str, np.ndarray]]:
        """Name and scores of each order: the ranking asked for, with ec one of each source, and the controls."""
        name = self.options.ranking.method + ("-highest" if self.options.ranking.reverse else "")
        several = [self._scores(self.options.ranking, f"{name}-{i + 1}" if len(self.sources) > 1 else name, data, report)
                   for i, data in enumerate(self.sources)]  # fmt: skip
        rankings = [(name, several[0])]
        if len(several) > 1 and self.options.combine == "ec":
            rankings = [(f"{name}-{i + 1}", scores) for i, scores in enumerate(several)]
        elif len(several) > 1:
            rankings = [(f"{name}-{self.options.combine}", combine(several, self.options.combine))]
            write_array(self.output / rankings[0][0] / SCORES, rankings[0][1])
        for control in self.options.controls:
            chosen = replace(CONTROLS[control], seed=self.options.ranking.seed, batch=self.options.ranking.batch)
            rankings.append((control, self._scores(chosen, control, self.dev, report)))
        return rankings

    def _scores(self, options: RankOptions, name: str, data: Data, report: Callable[[str], Any]) -> np.ndarray:
        """Of the dense fine-tuned model, or of an earlier call; an interrupted ranking goes on."""
        path = self.output / name / SCORES
        ranking = {"settings": {**asdict(options), "device": None}}
        if not same_run(self.output / name / "ranking.json", ranking["settings"]):
            write_json(self.output / name / "ranking.json", ranking)
        if not path.exists():
            dense = checkpoints.read(self.output / "dense" / MODEL)
            if options.method in BY_DATA:
                partial = self.output / name / PARTIAL
                scores = scores_on(dense, data, replace(options, device=self.options.device), partial, report(f"ranking {name}"))
                write_array(path, scores)
                partial.unlink(missing_ok=True)
            else:
                write_array(path, scores_without_data(dense, options))
        return read_scores(path, self.base.spec)

    def _order(self, name: str, scores: np.ndarray, report: Callable[[str], Any]) -> dict[str, Any]:
        """The trials of one order of heads."""
        folder = self.output / name
        order = order_of(scores, self.base.spec)
        base = self.base if self.options.start == "pretrained" else checkpoints.read(self.output / "dense" / MODEL)
        places = [folder / f"k{count:02}" / RESULT for count in self.options.counts]
        before = [read_object(place) for place in places if place.exists()]  # by a run that stopped, or tried fewer
        trials: list[dict[str, Any]] = []
        stopped = None
        for count in self.options.counts:
            trials.append(self._trial(base, order[:count], folder, [*before, *trials], report))
            if self.options.stop_on_drop and len(trials) > 1 and trials[-1]["dev"]["score"] < trials[-2]["dev"]["score"]:
                stopped = count
                break
        best = _best(trials)
        if not _holds(folder / BEST, best["heads"]):  # stopped between the two, or other counts before: train it once more
            _, trained = self._fine_tune(base, order[: best["k"]], folder / f"k{best['k']:02}", report(f"{name} k={best['k']} again"))
            checkpoints.save(trained, folder / BEST, force=(folder / BEST).exists())
        return {"order": name, "best": best, "stopped_at": stopped, "trials": trials}

    def _trial(
        self, base: Checkpoint, heads: Sequence[Head], folder: Path, before: Sequence[dict[str, Any]], report: Callable[[str], Any]
    ) -> dict[str, Any]:
        """Result of one trial, read if it is there already; `best` holds the model of the best so far."""
        place = folder / f"k{len(heads):02}"
        if (place / RESULT).exists():
            return read_object(place / RESULT)
        result, trained = self._fine_tune(base, heads, place, report(f"{folder.name} k={len(heads)}"))
        if _best([*before, result]) is result:
            checkpoints.save(trained, folder / BEST, force=(folder / BEST).exists())
        write_json(place / RESULT, result)
        return result

    def _fine_tune(
        self, base: Checkpoint, heads: Sequence[Head], folder: Path, progress: Progress | None
    ) -> tuple[dict[str, Any], Checkpoint]:
        about = {"heads": [list(head) for head in heads]}
        encoder = TaggingEncoder(apply_heads(base, heads, about), self.device)
        begun = time.monotonic()
        fine_tune(encoder, self.train, self.options.train, folder / TRAINING, progress)
        seconds = time.monotonic() - begun
        result: dict[str, Any] = {"k": len(heads), **about, "dev": evaluate(encoder, self.dev, self.labels)}
        if self.test is not None:
            result["test"] = evaluate(encoder, self.test, self.labels)
        return {**result, "seconds": round(seconds, 1)}, encoder.trained()


def run_trials(
    checkpoint: Checkpoint,
    output: Path,
    files: Files,
    reading: DataOptions,
    options: TrialOptions,
    *,
    force: bool = False,
    report: Callable[[str], Any] = lambda what: None,
) -> dict[str, Any]:
    """Write `output` and return its summary. force: first remove what an earlier run left there. On an EngineError what is done stays."""
    trials = Trials(checkpoint, output, files, reading, options)
    if force:
        _remove_run(output)
    return trials.run(report)


def _remove_run(output: Path) -> None:
    """The folders and files of a run, nothing else that stands beside them."""
    for name in (SETTINGS, SUMMARY):
        (output / name).unlink(missing_ok=True)
    folders = [output / "dense", *(path.parent.parent for path in output.glob(f"*/k*/{RESULT}"))]
    folders += [path.parent for path in output.glob(f"*/{SCORES}")]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _holds(folder: Path, heads: list[list[int]]) -> bool:
    """Whether the model there is the one without these heads."""
    try:
        return bool(checkpoints.read(folder).provenance["pruning"] == {"heads": heads})
    except (EngineError, KeyError):
        return False


def _best(trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The highest dev score; of equal ones the most heads removed."""
    return max(trials, key=lambda trial: (float(trial["dev"]["score"]), int(trial["k"])))
