"""The keys of a config.json against the lists of its architecture: what is unknown, and sizes told by a second name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.errors import Problem
from engine.formats.hugging_face.architecture import Architecture

SIZES = (  # names of one size in one architecture or another
    ("num_hidden_layers", "n_layers", "n_layer", "num_layers"),
    ("hidden_size", "dim", "n_embd", "d_model"),
    ("max_position_embeddings", "n_positions", "max_positions"),
    ("vocab_size", "n_vocab", "n_words"),
)
HEADS = ("num_attention_heads", "n_heads", "n_head", "num_heads")  # no shape shows how many there are


def unknown_keys(config: Mapping[str, Any], architecture: Architecture, notes: list[str]) -> list[str]:
    """Keys on none of the lists, noted; whatever begins with _ is bookkeeping, and a size by a second name is told by its first."""
    known = {*architecture.honoured, *architecture.harmless, *architecture.changes_the_computation}
    known |= {name for names in (*SIZES, HEADS) if known.intersection(names) for name in names}
    unknown = [key for key in config if key not in known and not key.startswith("_")]
    notes.extend(f"{key} of the configuration is not known and not used" for key in unknown)
    return unknown


def same_by_other_names(config: Mapping[str, Any], architecture: Architecture, problems: list[Problem], notes: list[str]) -> dict[str, Any]:
    """The configuration with sizes by the architecture's own names, where the library takes a second one for them.

    A number of heads told twice and differently is a problem; a size that the tensors show and a second name contradicts is noted.
    """
    result = dict(config)
    for names in (*SIZES, HEADS):
        own = next((name for name in names if name in architecture.honoured), None)
        for name in names:
            if own is None or name == own or config.get(name) is None:
                continue
            if result.get(own) is None and name in architecture.second_names:
                result[own] = config[name]
            elif names is HEADS and result.get(own) not in (None, config[name]):
                problems.append(Problem(f"config {name}", f"{result[own]}, as {own} says", repr(config[name])[:60]))
            elif result.get(own) != config[name]:
                notes.append(f"{name} {config[name]!r} of the configuration is not used: {own} and the tensors say the size")
    return result
