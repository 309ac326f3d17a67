"""What is checked of a checkpoint before a backend is built for it: numbers that are finite, and room for them."""

from __future__ import annotations

import os

from engine.backends.runner import Limits
from engine.checkpoint import Checkpoint
from engine.errors import EngineError, Problem, SpecMismatch
from engine.spec.cost import model_cost
from engine_kernels import native


def require_finite(checkpoint: Checkpoint, source: str) -> None:
    """Raise SpecMismatch naming every tensor that holds a NaN or an infinity."""
    problems = [
        Problem(name, "finite numbers", "NaN or infinity") for name, array in checkpoint.weights.items() if not native.all_finite(array)
    ]
    if problems:
        raise SpecMismatch(problems, source=source, hint="the training diverged or the file is damaged: take an earlier checkpoint")


def require_memory(checkpoint: Checkpoint, limits: Limits, source: str) -> None:
    """Raise EngineError when weights, one sequence's cache and the rows by distance cannot fit into the machine's memory."""
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return  # a system that does not say
    cost = model_cost(checkpoint.spec, dtype=limits.dtype, quantization=limits.quantization, rows=1)
    attentions = [layer.attention for layer in checkpoint.spec.layers]
    rows_by_distance = sum(4 * a.heads * a.head_dim * (a.reach or 0) for a in attentions)  # formed at load in float32
    needed = cost.weight_bytes + cost.kv_bytes + rows_by_distance
    if needed > physical:
        parts = {"of weights": cost.weight_bytes, "of keys and values": cost.kv_bytes, "of rows by distance": rows_by_distance}
        expected = f"at most {physical / 2**30:.1f} GiB, the memory of this machine"
        found = f"{needed / 2**30:.1f} GiB: " + ", ".join(f"{size / 2**30:.1f} {what}" for what, size in parts.items())
        raise EngineError(Problem("memory", expected, found), source=source, hint="load it in bfloat16, or keep fewer heads")
