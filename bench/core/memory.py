"""What a comparison keeps in memory at once, said before it starts: its engines take turns, so all of them are alive."""

from __future__ import annotations

import os
from collections.abc import Iterable

from bench.peers.table import Peer
from engine.errors import EngineError, Problem
from engine.spec import ModelSpec
from engine.spec.cost import model_cost

# engine: copies of its weights (exporters keep a graph beside the compiled form) and of a batch's caches (what comes in and goes out)
COPIES = {"cpu": (1, 1), "torch": (1, 2), "published": (1, 3), "compile": (2, 3), "onnxruntime": (3, 3), "openvino": (3, 3)}
SOURCES = 3  # the dense, the compact and the masked arrays


def needed_bytes(spec: ModelSpec, peers: Iterable[Peer], batch: int) -> int:
    """An estimate for all peers on one model, caches in float32."""
    cost = model_cost(spec, dtype="float32", rows=1)
    copies = [COPIES.get(peer.engine, (3, 3)) for peer in peers]
    weights = sum(of_weights for of_weights, _ in copies) + SOURCES + COPIES["torch"][0]
    return weights * cost.weight_bytes + batch * cost.kv_bytes * sum(of_caches for _, of_caches in copies)


def machine_bytes() -> int | None:
    """The memory of this machine; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def fits(needed: int) -> bool:
    """With a tenth of the machine left for the rest of the system."""
    machine = machine_bytes()
    return machine is None or needed <= 0.9 * machine


def require_memory(needed: int, hint: str) -> None:
    """Raise EngineError where a comparison would be killed."""
    machine = machine_bytes()
    if machine is not None and not fits(needed):
        expected = f"at most {0.9 * machine / 2**30:.1f} GiB, nine tenths of this machine's memory"
        raise EngineError(Problem("memory", expected, f"about {needed / 2**30:.1f} GiB for all engines at once"), hint=hint)
