"""NumPy arrays and other tensors → views → the compiled module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from engine_kernels import _native
from engine_kernels.errors import KernelError
from engine_kernels.shapes import EmbeddingShape, HeadShape, LayerShape, by_name

Arrays = Mapping[str, np.ndarray[Any, Any]]

# dtype → (its code in csrc/common/tensor_view.h, the unsigned type of its bits)
_FLOATS: dict[np.dtype[Any], tuple[int, type[np.unsignedinteger[Any]]]] = {
    np.dtype(np.float32): (0, np.uint32),
    np.dtype(np.float64): (1, np.uint64),
    np.dtype(np.float16): (2, np.uint16),
    np.dtype(ml_dtypes.bfloat16): (3, np.uint16),
}
_WEIGHTS = {"float32": 0, "bfloat16": 3}
_MULTIPLIES_BFLOAT16 = ("avx512_bf16", "amx", "emulated")


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
    """The instruction set whose kernels run in this process; raises KernelError where HEADCOUNT_CPU_ISA names one that cannot.

    So it does where ENGINE_CPU_ISA, the variable's old name, is set.
    """
    return _native.instruction_set()


def instruction_sets() -> list[str]:
    """All whose kernels this processor can run, the least first; HEADCOUNT_CPU_ISA may name any of them."""
    return _native.instruction_sets()


def call_counts() -> dict[str, int]:
    """How often each kernel ran so far in this process, by instruction set and operation: {"avx2.linear": 12}; proof of what runs."""
    return _native.call_counts()


def stored_bytes() -> int:
    """Bytes of packed weights alive in this process, those that several models share counted once."""
    return _native.stored_bytes()


def linear(x: np.ndarray[Any, Any], w: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """x [rows, k], w [n, k] float32 → x · wᵀ [rows, n], on one thread, so with the same bits on any number of cores."""
    y = np.empty((_rows(x, "x"), _rows(w, "w")), np.float32)
    _native.linear(_whole(x), _whole(w), y)
    return y


def preferred_dtype() -> str:
    """The dtype `auto` stands for on this processor: bfloat16 where its kernels multiply bfloat16 directly, else float32."""
    return "bfloat16" if instruction_set() in _MULTIPLIES_BFLOAT16 else "float32"


class NativeModel:
    """Weights, caches and threads of one model in native code. Every method may raise KernelError, then nothing has changed.

    Arrays may be tensors of any library that hands memory over by the buffer protocol or by DLPack: on the CPU, contiguous, and of the
    element type named; NumPy arrays that are only read may be strided.

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
        self._head = HeadShape()

    def add_layer(self, shape: LayerShape, arrays: Arrays) -> None:
        """Pack a layer behind the last; arrays float32 by the names the model gives them, none of which is kept."""
        self._model.add_layer(by_name(shape, LayerShape), _contiguous(arrays))
        self._layers += 1

    def set_head(self, shape: HeadShape, arrays: Arrays) -> None:
        """Pack what reads the last hidden states; to be set before the embedding."""
        self._model.set_head(by_name(shape, HeadShape), _contiguous(arrays))
        self._head = shape

    def set_embedding(self, shape: EmbeddingShape, arrays: Arrays) -> None:
        """Pack what makes rows of tokens; rows and projections that the head shares are stored once."""
        self._model.set_embedding(by_name(shape, EmbeddingShape), _contiguous(arrays))

    def grow(self, slots: int) -> None:
        """Make room for at least `slots` slots."""
        self._model.grow(slots)

    def restart(self, slot: int) -> None:
        """Put a slot to the start of a stream."""
        self._model.restart(slot)

    def embed(
        self,
        ids: np.ndarray[Any, Any],
        positions: np.ndarray[Any, Any] | None = None,
        token_types: np.ndarray[Any, Any] | None = None,
    ) -> np.ndarray[Any, Any]:
        """ids, and the rows of the other two tables where the model has them, [rows] int64 → [rows, hidden] float32."""
        hidden = np.empty((_rows(ids, "ids"), self._hidden), np.float32)
        self._model.embed(_whole(ids), hidden, _whole(positions), _whole(token_types))
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
        taps = np.empty((self._layers, _rows(hidden, "hidden"), self._hidden), np.float32) if tapped else None
        self._model.step(hidden, _whole(slots), _whole(starts), _whole(lengths), taps)
        return taps

    def final_norm(self, hidden: np.ndarray[Any, Any]) -> None:
        """The final norm in place, where the model has one."""
        self._model.final_norm(hidden)

    def transform(self, hidden: np.ndarray[Any, Any]) -> None:
        """The dense layer and norm before the vocabulary, in place."""
        self._model.transform(hidden)

    def labels(self, hidden: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """[rows, labels], through the pooler where the model has one."""
        out = np.empty((_rows(hidden, "hidden"), self._head.labels), np.float32)
        self._model.labels(hidden, out)
        return out

    def logits(self, hidden: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """[rows, words of the first cluster], before any softmax."""
        out = np.empty((_rows(hidden, "hidden"), self._size(0)), np.float32)
        self._model.logits(hidden, out)
        return out

    def head_log_probs(self, hidden: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """[rows, n0 + tails]: log-softmax over the first cluster's words and the tails' entries."""
        tails = max(0, len(self._head.clusters) - 1)
        out = np.empty((_rows(hidden, "hidden"), self._size(0) + tails), np.float32)
        self._model.head_log_probs(hidden, out)
        return out

    def tail_log_probs(self, hidden: np.ndarray[Any, Any], cluster: int) -> np.ndarray[Any, Any]:
        """[rows, size]: log-softmax inside tail `cluster` ≥ 1, without its entry's mass."""
        out = np.empty((_rows(hidden, "hidden"), self._size(cluster)), np.float32)
        self._model.tail_log_probs(hidden, cluster, out)
        return out

    def target_nll(self, hidden: np.ndarray[Any, Any], targets: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """[rows]: -log p(target), NaN where the target is -1."""
        out = np.empty(_rows(hidden, "hidden"), np.float32)
        self._model.target_nll(hidden, _whole(targets), out)
        return out

    def weight_bytes(self) -> tuple[int, int]:
        """Bytes of packed weights this model reads, and how many of these another loaded model reads too."""
        return self._model.weight_bytes()

    @property
    def threads(self) -> int:
        """How many threads work, the caller's among them."""
        return self._model.threads

    def _size(self, cluster: int) -> int:
        """Words of a cluster of the head; 0 where it has no such one, which native code refuses."""
        return self._head.clusters[cluster].size if cluster < len(self._head.clusters) else 0


def _contiguous(arrays: Arrays) -> dict[str, np.ndarray[Any, Any]]:
    return {name: _whole(array) for name, array in arrays.items()}


def _rows(tensor: Any, name: str) -> int:
    """The first size of a tensor of any library."""
    shape: Sequence[int] = getattr(tensor, "shape", ())
    if len(shape) == 0:
        raise KernelError(name, "an array or a tensor of at least one dimension", type(tensor).__name__)
    return int(shape[0])


def _whole(tensor: Any) -> Any:
    """A NumPy array without gaps; any other tensor as it is, for native code to take or to refuse."""
    return np.require(tensor, requirements=["C", "A"]) if isinstance(tensor, np.ndarray) else tensor
