"""NumPy arrays → views → the compiled module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import ml_dtypes
import numpy as np

from engine_kernels import _native
from engine_kernels.errors import KernelError

# dtype → (its code in csrc/common/tensor_view.h, the unsigned type of its bits)
_FLOATS: dict[np.dtype[Any], tuple[int, type[np.unsignedinteger[Any]]]] = {
    np.dtype(np.float32): (0, np.uint32),
    np.dtype(np.float64): (1, np.uint64),
    np.dtype(np.float16): (2, np.uint16),
    np.dtype(ml_dtypes.bfloat16): (3, np.uint16),
}
_WEIGHTS = {"float32": 0, "bfloat16": 3}
_MULTIPLIES_BFLOAT16: tuple[str, ...] = ()  # no unit with bfloat16 dot products is built yet


def all_finite(array: np.ndarray[Any, Any]) -> bool:
    """Whether no element is infinite or NaN; true for no elements.

    array: float32, float64, float16 or bfloat16 of any shape and layout; memory-mapped and read-only ones are read in place, only
    gaps between elements or a misaligned start cost a copy. Raises KernelError for another dtype or byte order.
    """
    known = _FLOATS.get(array.dtype)
    if known is None:
        raise KernelError("array", "float32, float64, float16 or bfloat16 in native byte order", str(array.dtype))
    code, bits = known
    flat = np.require(np.asarray(array).ravel(order="K"), requirements=["C", "A"])
    return _native.all_finite(flat.view(bits), code)


def instruction_set() -> str:
    """The instruction set whose kernels run in this process; raises KernelError where ENGINE_CPU_ISA names one that cannot."""
    return _native.instruction_set()


def instruction_sets() -> list[str]:
    """All whose kernels this processor can run, the least first; ENGINE_CPU_ISA may name any of them."""
    return _native.instruction_sets()


def call_counts() -> dict[str, int]:
    """How often each kernel ran so far in this process, by instruction set and operation: {"avx2.linear": 12}; proof of what runs."""
    return _native.call_counts()


def preferred_dtype() -> str:
    """The dtype `auto` stands for on this processor: bfloat16 where its kernels multiply bfloat16 directly, else float32."""
    return "bfloat16" if instruction_set() in _MULTIPLIES_BFLOAT16 else "float32"


@dataclass(frozen=True)
class LayerShape:
    """The integers of one layer; heads 0 = no attention, feed_forward 0 = none. The others as in ops.Visibility; ramp 0 = no spans."""

    heads: int
    head_dim: int
    persistent: int
    window: int
    segment: int
    reach: int
    first: int
    attended_zeros: bool
    ramp: float
    feed_forward: int
    norm_first: bool
    norm_eps: float


@dataclass(frozen=True)
class ClusterShape:
    """Token ids start .. start + size - 1, rows of `width`; entry: its place in the first softmax; tied: the embedding's own rows."""

    start: int
    size: int
    width: int
    entry: int
    projected: bool
    tied: bool

    def as_tuple(self) -> tuple[int, int, int, int, bool, bool]:
        return self.start, self.size, self.width, self.entry, self.projected, self.tied


class NativeModel:
    """Weights, caches and threads of one model in native code. Every method may raise KernelError, then nothing has changed.

    Several threads may call it; they wait for one another. A forked child cannot use its parent's model.
    """

    def __init__(self, hidden: int, dtype: str, threads: int | None, quantization: str | None = None) -> None:
        """dtype of the weights: float32 or bfloat16; threads None = as many as the process may run on.

        quantization int8: every matrix that is multiplied with and no embedding is int8, symmetric, one float32 scale per row.
        """
        if dtype not in _WEIGHTS:
            raise KernelError("dtype", ", ".join(_WEIGHTS), repr(dtype))
        if quantization not in (None, "int8"):
            raise KernelError("quantization", "None or 'int8'", repr(quantization))
        self._model = _native.NativeModel(hidden, _WEIGHTS[dtype], quantization == "int8", threads or 0)
        self._hidden = hidden
        self._layers = 0
        self._widths: list[int] = []  # of the first cluster with the tails' entries, then of each tail

    def add_layer(self, shape: LayerShape, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Pack a layer behind the last; arrays float32 by the names the model gives them, none of which is kept."""
        self._model.add_layer(**asdict(shape), arrays=_contiguous(arrays))
        self._layers += 1

    def set_vocabulary(
        self,
        inputs: Sequence[ClusterShape],
        outputs: Sequence[ClusterShape],
        arrays: Mapping[str, np.ndarray[Any, Any]],
        *,
        clusters_read_hidden: bool,
        final_norm_eps: float | None,
        embedding_scale: float,
    ) -> None:
        """Pack embedding and output side; a tied output cluster's rows are stored once."""
        self._model.set_vocabulary(
            inputs=[cluster.as_tuple() for cluster in inputs],
            outputs=[cluster.as_tuple() for cluster in outputs],
            clusters_read_hidden=clusters_read_hidden,
            final_norm_eps=final_norm_eps,
            embedding_scale=embedding_scale,
            arrays=_contiguous(arrays),
        )
        self._widths = [outputs[0].size + len(outputs) - 1, *(cluster.size for cluster in outputs[1:])]

    def grow(self, slots: int) -> None:
        """Make room for at least `slots` slots."""
        self._model.grow(slots)

    def restart(self, slot: int) -> None:
        """Put a slot to the start of a stream."""
        self._model.restart(slot)

    def embed(self, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """ids [rows] int64 → [rows, hidden] float32."""
        hidden = np.empty((len(ids), self._hidden), np.float32)
        self._model.embed(np.ascontiguousarray(ids), hidden)
        return hidden

    def step(
        self,
        hidden: np.ndarray[Any, Any],
        slots: np.ndarray[Any, Any],
        starts: np.ndarray[Any, Any],
        lengths: np.ndarray[Any, Any],
        *,
        tapped: bool = False,
    ) -> np.ndarray[Any, Any] | None:
        """hidden [rows, hidden] through all layers, in place; the residual stream after each [layers, rows, hidden] if tapped.

        Sequence s continues slots[s] at position starts[s] with lengths[s] of the rows.
        """
        taps = np.empty((self._layers, *hidden.shape), np.float32) if tapped else None
        self._model.step(hidden, np.ascontiguousarray(slots), np.ascontiguousarray(starts), np.ascontiguousarray(lengths), taps)
        return taps

    def finish(self, hidden: np.ndarray[Any, Any]) -> None:
        """The final norm in place, where the model has one."""
        self._model.finish(hidden)

    def head_log_probs(self, hidden: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """[rows, n0 + tails]: log-softmax over the first cluster's words and the tails' entries."""
        out = np.empty((len(hidden), self._widths[0]), np.float32)
        self._model.head_log_probs(hidden, out)
        return out

    def tail_log_probs(self, hidden: np.ndarray[Any, Any], cluster: int) -> np.ndarray[Any, Any]:
        """[rows, size]: log-softmax inside tail `cluster` ≥ 1, without its entry's mass."""
        out = np.empty((len(hidden), self._widths[cluster]), np.float32)
        self._model.tail_log_probs(hidden, cluster, out)
        return out

    def target_nll(self, hidden: np.ndarray[Any, Any], targets: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """[rows]: -log p(target), NaN where the target is -1."""
        out = np.empty(len(hidden), np.float32)
        self._model.target_nll(hidden, np.ascontiguousarray(targets), out)
        return out

    @property
    def threads(self) -> int:
        """How many threads work, the caller's among them."""
        return self._model.threads


def _contiguous(arrays: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    return {name: np.require(array, requirements=["C", "A"]) for name, array in arrays.items()}
