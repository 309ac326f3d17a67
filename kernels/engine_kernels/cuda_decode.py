"""The decode step of a whole model by one CUDA launch: weights packed once, a validated schedule per number of rows.

Equation, schedule and data movement: docs/kernels.md, decode_step. On an sm_90 GPU, or on the emulated one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from engine_kernels.errors import KernelError
from engine_kernels.gpu_ops import Norm, Pair, Tables, plain
from engine_kernels.ops import Visibility
from engine_kernels.shapes import by_name

CLUSTERS = (8, 4)  # sizes to choose from, best first; 8 blocks are the most that every sm_90 GPU has in a cluster
EMULATED_CLUSTERS = (*CLUSTERS, 2)  # the emulated GPU has clusters of 2 alone where a test asks for no others
PATIENCE = "HEADCOUNT_CUDA_PATIENCE"  # seconds a block waits for the others before it gives up, 2 where it is not set
LONGEST_PATIENCE = 3600.0


@dataclass(frozen=True)
class DecodeLayer:
    """A layer without feed-forward. qkv [3, H, D, hidden] and its bias [3, H · D]; output [hidden, H · D]; None where it has no head."""

    norm: Norm
    norm_first: bool
    output_bias: torch.Tensor | None
    qkv: torch.Tensor | None = None
    qkv_bias: torch.Tensor | None = None
    output: torch.Tensor | None = None
    tables: Tables | None = None
    visibility: Visibility | None = None


@dataclass(frozen=True)
class DecodeShape:
    """A layer in plain numbers, whose C++ struct has these fields by the same names (csrc/cuda/decode/decode.h, LayerShape).

    distance_tables: heads, or 1 for all heads, or 0; span_ramp 0 = no spans. Without heads only the norm counts.
    """

    heads: int
    persistent: int
    distance_tables: int
    visibility: Visibility
    norm_first: bool
    norm_eps: float
    span_ramp: float

    @classmethod
    def of(cls, layer: DecodeLayer) -> DecodeShape:
        """From the sizes of a layer's tensors."""
        if layer.qkv is None or layer.tables is None or layer.visibility is None:
            return cls(0, 0, 0, Visibility(0, 0, 0, 0, False), layer.norm_first, layer.norm.eps, 0.0)
        tables = layer.tables
        return cls(
            heads=layer.qkv.shape[1],
            persistent=0 if tables.persistent_keys is None else tables.persistent_keys.shape[1],
            distance_tables=0 if tables.distances is None else tables.distances.shape[0],
            visibility=layer.visibility,
            norm_first=layer.norm_first,
            norm_eps=layer.norm.eps,
            span_ramp=0.0 if tables.spans is None else float(tables.span_ramp),
        )


class DecodeStep:
    """All layers over one row of each of up to 16 sequences. refusal: why no number of rows can be run, None where one can.

    Made on PyTorch's current device, where it starts a grid without work. Raises KernelError where HEADCOUNT_CUDA_PATIENCE is no time.
    """

    def __init__(self, module: Any, device: torch.device, hidden: int, layers: Sequence[DecodeLayer]) -> None:
        self.refusal: str | None = None
        self._device = device
        self._layers = layers
        self._rooms: dict[int, _Room] = {}
        self._fits: dict[int, bool] = {}
        self._patience = _patience()
        dims = {layer.qkv.shape[2] for layer in layers if layer.qkv is not None}
        if len(dims) != 1:
            self.refusal = f"heads of one size, not of {sorted(dims)}"
            return
        shapes = [by_name(DecodeShape.of(layer), DecodeShape) for layer in layers]
        self._decode = module.Decode(hidden, dims.pop(), shapes, EMULATED_CLUSTERS if device.type == "cpu" else CLUSTERS)
        self.refusal = self._decode.refusal(1) or None
        if self.refusal is None:
            self._float16 = next(layer.qkv.dtype == torch.float16 for layer in layers if layer.qkv is not None)
            self._packed = torch.from_numpy(self._decode.pack([_weights(layer) for layer in layers])).to(device)
            self._meeting = torch.zeros(1, dtype=torch.int32, device=device)
            self._trouble = torch.zeros(4, dtype=torch.int32, device=device)

    def fits(self, rows: int) -> bool:
        """Whether steps of so many rows are run."""
        if rows not in self._fits:
            self._fits[rows] = self.refusal is None and not self._decode.refusal(rows)
        return self._fits[rows]

    def grid(self, rows: int) -> tuple[int, int]:
        """Clusters, and blocks of each, that a step of so many rows takes."""
        grid: tuple[int, int] = self._decode.grid(rows)
        return grid

    def __call__(self, hidden: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor, rings: list[Pair | None]) -> torch.Tensor:
        """hidden [rows, hidden] float32 of sequences in slots at positions [rows] → the same after all layers; rings are written."""
        rows = len(hidden)
        if rows not in self._rooms:
            self._rooms[rows] = self._room(rows, hidden.shape[1])
        room, out = self._rooms[rows], torch.empty_like(hidden)
        layers = room.layers_of(self._layers, rings)
        stream = torch.cuda.current_stream(self._device).cuda_stream if self._device.type == "cuda" else 0
        self._decode.run(
            self._float16, self._packed, layers, room.items, room.begins, hidden, out, slots, positions, room.outputs, room.states,
            self._meeting, self._trouble, self._patience, stream,
        )  # fmt: skip
        return out

    def check(self) -> None:
        """Waits for the steps so far; raises RuntimeError where a block gave up waiting in one, and makes ready for the next.

        Never of a step that is recorded: a copy to the host between two kernels of a graph would keep the second from starting early.
        """
        raised, block, layer, phase = self._trouble.tolist()
        if not raised:
            return
        self._trouble.zero_()
        self._meeting.zero_()
        what = "the other blocks" if phase == 1 else "its weights"
        raise RuntimeError(
            f"decode step, block {block} before layer {layer}: expected {what} within {self._patience / 1e9:g} s, found nothing;"
            " the step was given up and its sequences are lost: reset their slots; if it happens again, load with backend='triton'"
        )

    def _room(self, rows: int, hidden: int) -> _Room:
        items, begins, most_jobs = self._decode.schedule(rows)
        return _Room(
            self._decode,
            rows,
            torch.from_numpy(items).to(self._device),
            torch.from_numpy(begins).to(self._device),
            torch.empty((2, most_jobs, rows, hidden), device=self._device),
            torch.empty((2, 2, most_jobs, rows), device=self._device),
        )


class _Room:
    """What a step of one number of rows reads and writes beside its arguments."""

    def __init__(
        self, decode: Any, rows: int, items: torch.Tensor, begins: torch.Tensor, outputs: torch.Tensor, states: torch.Tensor
    ) -> None:
        self.items, self.begins, self.outputs, self.states = items, begins, outputs, states
        self._decode = decode
        self._rows = rows
        self._layers = torch.empty(0)
        self._where: list[int] = []

    def layers_of(self, layers: Sequence[DecodeLayer], rings: list[Pair | None]) -> torch.Tensor:
        """The table of layers on the device, made anew where the rings have moved."""
        where = [0 if pair is None else pair[0].data_ptr() for pair in rings]
        if where != self._where:
            spans = [None if layer.tables is None else layer.tables.spans for layer in layers]
            made = self._decode.layers(self._rows, [(*(pair or (None, None)), span) for pair, span in zip(rings, spans, strict=True)])
            self._layers, self._where = torch.from_numpy(made).to(self.items.device), where
        return self._layers


def _patience() -> int:
    """Nanoseconds; raises KernelError where the variable is no time."""
    said = os.environ.get(PATIENCE, "2")
    try:
        seconds = float(said)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= LONGEST_PATIENCE:
        raise KernelError(PATIENCE, f"a number of seconds above 0 and up to {LONGEST_PATIENCE:g}", repr(said))
    return round(seconds * 1e9)


def _weights(layer: DecodeLayer) -> dict[str, np.ndarray]:
    """By the names of csrc/cuda/decode/decode.h; 16-bit numbers as uint16, vectors as float32."""
    vectors: dict[str, torch.Tensor | None] = {"gain": layer.norm.gain, "shift": layer.norm.shift, "output_bias": layer.output_bias}
    matrices: dict[str, torch.Tensor | None] = {}
    if layer.qkv is not None and layer.tables is not None:
        tables = layer.tables
        matrices = dict(zip(("query", "key", "value"), layer.qkv, strict=True))
        matrices.update(output=layer.output, distances=plain(tables.distances))
        matrices.update(persistent_keys=plain(tables.persistent_keys), persistent_values=plain(tables.persistent_values))
        vectors.update(content_bias=plain(tables.content_bias), position_bias=plain(tables.position_bias))
        if layer.qkv_bias is not None:
            vectors.update(zip(("query_bias", "key_bias", "value_bias"), layer.qkv_bias, strict=True))
    packed = {name: vector.float().contiguous().cpu().numpy() for name, vector in vectors.items() if vector is not None}
    for name, matrix in matrices.items():
        if matrix is not None:
            packed[name] = matrix.contiguous().view(torch.int16).cpu().numpy().view(np.uint16)
    return packed
