"""An architecture that does not exist, added as CONTRIBUTING's recipe says: this module, and one row `"toy": TOY` of ARCHITECTURES.

An encoder without biases and trained norms, whose queries, keys and values lie in one matrix and whose tensors are called as no other's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from engine.checkpoint import Checkpoint
from engine.checkpoint.side_files import SideFiles
from engine.checkpoint.tokenizer import words
from engine.formats.base import Settings, SourceTensors
from engine.formats.hugging_face.architecture import Architecture, Kept
from engine.formats.hugging_face.encoder import layer_spec
from engine.formats.hugging_face.heads import read_heads
from engine.formats.hugging_face.keys import HARMLESS, HONOURED, not_a_decoder, read_activation
from engine.spec import Cluster, Embedding, ModelSpec, Task


def read_toy_task(_: SourceTensors, settings: Settings, __: list[str]) -> Task:
    """hidden, the only one."""
    if settings.value("task") not in (None, "hidden"):
        settings.problem("option task", "hidden for the toy", repr(settings.value("task"))[:60])
    return "hidden"


def read_toy(task: Task, source: SourceTensors, settings: Settings, notes: list[str]) -> tuple[Checkpoint, Kept]:
    vocab, hidden = source.shape("toy.words", 2)
    places = source.shape("toy.places", 2)[0]
    blocks = source.count("toy.block.")
    settings.agree("toy_blocks", blocks, "blocks in the file")
    names = [f"toy.block.{index}." for index in range(blocks)]
    heads = read_heads(settings, "toy_heads", hidden, [(f"{name}out", source.rows(f"{name}out")) for name in names], notes)
    weights = {"embedding.0": source.take("toy.words", (vocab, hidden)), "embedding.positions": source.take("toy.places", (places, hidden))}
    widths = [source.shape(f"{name}up", 2)[0] for name in names]
    for index, (name, width) in enumerate(zip(names, widths, strict=True)):
        rows, ours = len(heads.kept[index]) * heads.head_dim, f"layers.{index}."
        stacked = source.take(f"{name}qkv", (3 * rows, hidden))
        for place, part in enumerate(("query", "key", "value")):
            weights[f"{ours}attention.{part}"] = stacked[place * rows : (place + 1) * rows]
            weights[f"{ours}attention.{part}_bias"] = np.zeros(rows, np.float32)
        weights[f"{ours}attention.output"] = source.take(f"{name}out", (rows, hidden)).T
        weights[f"{ours}feed_forward.up"] = source.take(f"{name}up", (width, hidden))
        weights[f"{ours}feed_forward.down"] = source.take(f"{name}down", (hidden, width))
        weights[f"{ours}feed_forward.up_bias"] = np.zeros(width, np.float32)
        for part in ("attention.output_bias", "feed_forward.down_bias", "attention_norm_bias", "feed_forward_norm_bias"):
            weights[ours + part] = np.zeros(hidden, np.float32)
        for part in ("attention_norm", "feed_forward_norm"):
            weights[ours + part] = np.ones(hidden, np.float32)
    activation = read_activation(settings, "toy_activation", "relu")
    layers = tuple(layer_spec(heads, kept, width, activation, 1e-5) for kept, width in zip(heads.kept, widths, strict=True))
    spec = ModelSpec(hidden, vocab, layers, Embedding((Cluster(vocab, hidden, False),), 1.0, places), None, task)
    weights = {name: array for name, array in weights.items() if array.size}  # a layer without heads has no such tensors
    return Checkpoint(spec, weights), heads.kept


def toy_files(files: SideFiles, _: Mapping[str, Any]) -> str | None:
    """toy.txt, a word per line."""
    return words(files.text("toy.txt").split()) if files.has("toy.txt") else None


TOY = Architecture(
    classes="Toy",
    tasks={"Model": "hidden"},
    recognised_by="toy.block.0.qkv",
    read_task=read_toy_task,
    read=read_toy,
    tokenizer=toy_files,
    honoured=(*HONOURED, "toy_blocks", "toy_heads", "toy_activation"),
    harmless=HARMLESS,
    changes_the_computation={"is_decoder": not_a_decoder, "toy_twist": lambda value, _: "no twist" if value else None},
)
