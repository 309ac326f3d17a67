"""Fine-tuning of an encoder on labelled sentences: AdamW, linear warm-up and decay, checkpoints that a stopped run goes on from."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.errors import EngineError, InputError, Problem
from engine.prune.batches import collate
from engine.prune.encoder import TaggingEncoder
from engine.prune.files import write_file
from engine.prune.task import Data

Progress = Callable[[int, int], None]
SAVE_SECONDS = 60.0  # work that an interruption may cost
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class TrainOptions:
    """3 epochs at 5e-5 in the order of the file, as arXiv 2108.08375 §4; it does not say the batch, warm-up and dropout.

    warmup: share of the steps; decay: of weights, not of biases and norms; precision: of matrix products, weights stay float32.
    """

    epochs: int = 3
    rate: float = 5e-5
    batch: int = 32
    warmup: float = 0.1
    decay: float = 0.0
    dropout: float = 0.1
    clip: float = 1.0
    seed: int = 0
    shuffle: bool = False
    precision: str = "float32"

    def check(self) -> TrainOptions:
        """Self; raises InputError with everything that is wrong."""
        rules = {
            "epochs": (self.epochs >= 1, "at least 1"),
            "rate": (0 < self.rate <= 1e30, "a positive number, at most 1e30"),
            "batch": (self.batch >= 1, "at least one sequence"),
            "warmup": (0 <= self.warmup <= 1, "a share from 0 to 1"),
            "decay": (math.isfinite(self.decay) and self.decay >= 0, "a number of at least 0"),
            "dropout": (0 <= self.dropout < 1, "a share below 1"),
            "clip": (self.clip > 0, "a positive number"),
            "precision": (self.precision in PRECISIONS, " or ".join(PRECISIONS)),
        }
        if problems := [Problem(name, expected, repr(getattr(self, name))) for name, (good, expected) in rules.items() if not good]:
            raise InputError(problems)
        return self


def fine_tune(
    encoder: TaggingEncoder, data: Data, options: TrainOptions, partial: Path | None = None, progress: Progress | None = None
) -> None:
    """Train every weight of `encoder`. A run that stopped goes on from `partial` with the same result; it is removed at the end.

    Raises EngineError where a loss or a gradient is no number, InputError for options.
    """
    options.check()
    order = _order(len(data.examples), options)
    steps = [order[epoch][i : i + options.batch] for epoch in range(options.epochs) for i in range(0, len(data.examples), options.batch)]
    optimizer = _optimizer(encoder, options)
    with _seeded(options.seed, encoder.device):
        first = 0 if partial is None else _restore(partial, encoder, optimizer)
        saved = time.monotonic()
        encoder.dropout = options.dropout
        for step in range(first, len(steps)):
            for group in optimizer.param_groups:
                group["lr"] = options.rate * _share(step, len(steps), options.warmup)
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(encoder.device.type, PRECISIONS[options.precision], enabled=options.precision != "float32"):
                loss = encoder.loss(collate(data.examples, steps[step], encoder.device))
            _require_finite("loss", step, loss)
            loss.backward()  # type: ignore[no-untyped-call]
            _require_finite("length of the gradient", step, torch.nn.utils.clip_grad_norm_(encoder.weights.values(), options.clip))
            optimizer.step()
            if progress is not None:
                progress(step + 1, len(steps))
            if partial is not None and time.monotonic() - saved > SAVE_SECONDS:
                _save(partial, encoder, optimizer, step + 1)
                saved = time.monotonic()
        encoder.dropout = 0.0
    if partial is not None:
        partial.unlink(missing_ok=True)


def _require_finite(what: str, step: int, value: torch.Tensor) -> None:
    if not torch.isfinite(value):
        found, hint = str(value.item()), "use a lower learning rate, or float32"
        raise EngineError(Problem(f"{what} of training step {step + 1}", "a finite number", found), hint=hint)


def _order(count: int, options: TrainOptions) -> list[list[int]]:
    """Of the sequences in each epoch."""
    draws = [np.random.default_rng((options.seed, epoch)) for epoch in range(options.epochs)]
    return [draw.permutation(count).tolist() if options.shuffle else list(range(count)) for draw in draws]


def _share(step: int, steps: int, warmup: float) -> float:
    """Of the learning rate: rising linearly over the warm-up, then falling linearly to 0 behind the last step."""
    rising = math.ceil(warmup * steps)
    return (step + 1) / rising if step < rising else (steps - step) / max(steps - rising, 1)


def _optimizer(encoder: TaggingEncoder, options: TrainOptions) -> torch.optim.AdamW:
    decayed = [w for name, w in encoder.weights.items() if w.ndim > 1]
    others = [w for name, w in encoder.weights.items() if w.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": options.decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=options.rate)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Dropout drawn from the seed; the caller's random state is as before afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _save(path: Path, encoder: TaggingEncoder, optimizer: torch.optim.Optimizer, step: int) -> None:
    state: dict[str, Any] = {"step": step, "optimizer": optimizer.state_dict(), "random": torch.get_rng_state()}
    if encoder.device.type == "cuda":
        state["cuda_random"] = torch.cuda.get_rng_state(encoder.device)
    state["weights"] = {name: weight.detach() for name, weight in encoder.weights.items()}
    content = io.BytesIO()
    torch.save(state, content)
    write_file(path, content.getvalue())


def _restore(path: Path, encoder: TaggingEncoder, optimizer: torch.optim.Optimizer) -> int:
    """The step to go on with; 0 where nothing is saved or it cannot be read."""
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        step = int(state["step"])
        with torch.no_grad():
            for name, weight in encoder.weights.items():
                weight.copy_(state["weights"][name])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        if "cuda_random" in state:
            torch.cuda.set_rng_state(state["cuda_random"], encoder.device)
    except Exception as error:  # damaged bytes make torch and pickle raise anything
        raise EngineError(Problem(str(path), "a training state written here", str(error)[:120]), hint="remove it to start again") from None
    return step
