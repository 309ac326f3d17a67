"""What is known of one model_type: how its files are read and written, and what each key of its config.json means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.checkpoint import Checkpoint, Weights
from engine.checkpoint.side_files import SideFiles
from engine.formats.base import Settings, SourceTensors
from engine.formats.hugging_face.keys import Change
from engine.spec import ModelSpec, Task

Kept = tuple[tuple[int, ...], ...]  # head numbers per layer


@dataclass(frozen=True)
class Architecture:
    """A row of ARCHITECTURES. Problems of tensors and settings are collected in both; notes are remarks for the report.

    classes: what the names of its classes start with.  tasks: what they end with → task.
    recognised_by: a part of the name of one tensor, which every file of this layout has.
    read_task: the task, from `architectures`, the option task or the tensors.  read: the whole model, its problems still to be told.
    write: (spec, our tensors, class name) → tensors by their names there; None where `headcount export hf` does not write it.
    tokenizer: (files beside the tensors, tokenizer_config.json) → the text of a tokenizer.json, None without vocabulary files.
    Keys of config.json, each in one list: honoured, read by the two functions above; harmless, of training, generation and bookkeeping, as
    is every key that begins with _; changes_the_computation, refused by name when the value is one that changes something. A key in none of
    them is noted in the report, and refused under strict.  second_names: keys the library takes for sizes by another name.
    prefix, layers: what stands before a task model's own tensors, and before the number of a layer; anything in front of both is left out.
    """

    classes: str
    tasks: Mapping[str, Task]
    recognised_by: str
    read_task: Callable[[SourceTensors, Settings, list[str]], Task]
    read: Callable[[Task, SourceTensors, Settings, list[str]], tuple[Checkpoint, Kept]]
    tokenizer: Callable[[SideFiles, Mapping[str, Any]], str | None]
    honoured: tuple[str, ...]
    harmless: tuple[str, ...]
    changes_the_computation: Mapping[str, Change]
    write: Callable[[ModelSpec, Weights, str], dict[str, np.ndarray]] | None = None
    second_names: tuple[str, ...] = ()
    prefix: str = ""
    layers: str = ""
