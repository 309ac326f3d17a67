# Tensors of one NVIDIA GPU, handed over by DLPack; stream: the number of a CUDA stream. Shapes: gpu_ops.py and csrc/cuda/*.h.
from typing import Any

def rounds_first(rows: int) -> bool: ...
def word_parts(rows: int, words: int) -> int: ...
def project(
    x: Any,
    gain: Any,
    shift: Any,
    eps: float,
    weight: Any,
    bias: Any,
    activation: str,
    residual: Any,
    scratch: Any,
    out: Any,
    stream: int,
) -> None: ...
def project_heads(
    x: Any,
    gain: Any,
    shift: Any,
    eps: float,
    weight: Any,
    bias: Any,
    query: Any,
    keys: Any,
    values: Any,
    slots: Any,
    positions: Any,
    scratch: Any,
    stream: int,
) -> None: ...
def write_rings(
    new_keys: Any, new_values: Any, keys: Any, values: Any, source_rows: Any, slots: Any, positions: Any, stream: int
) -> None: ...
def normalise(x: Any, gain: Any, shift: Any, eps: float, out: Any, stream: int) -> None: ...
def score_words(
    x: Any, weight: Any, bias: Any, targets: Any, scratch: Any, parts: Any, everything: Any, logit: Any, stream: int
) -> None: ...
def attend_bidirectional(
    query: Any,
    new_keys: Any,
    new_values: Any,
    first_rows: Any,
    lengths: Any,
    tile_sequence: Any,
    tile_row: Any,
    tile_rows: int,
    out: Any,
    stream: int,
) -> None: ...
def rows_of_a_tile(longest: int) -> int: ...
def splits_of(rows: int, heads: int, persistent: int) -> int: ...
def hopper_tile_rows() -> int: ...
def hopper_runs(head_dim: int) -> bool: ...
def hopper_fits(head_dim: int, heads: int, tiles: int) -> bool: ...

class Attention:
    def __init__(
        self,
        query: Any,
        ring_keys: Any,
        ring_values: Any,
        distances: Any,
        content_bias: Any,
        position_bias: Any,
        persistent_keys: Any,
        persistent_values: Any,
        spans: Any,
        span_ramp: float,
        window: int,
        segment: int,
        reach: int,
        first_distance: int,
        attended_zeros: bool,
        outs: Any,
        states: Any,
        scores: Any,
        out: Any,
    ) -> None: ...
    def constants(self, stream: int) -> None: ...
    def ring(self, first_rows: Any, lengths: Any, slots: Any, offsets: Any, positions: Any, stream: int) -> None: ...
    def rows(
        self,
        first_rows: Any,
        lengths: Any,
        slots: Any,
        offsets: Any,
        positions: Any,
        new_keys: Any,
        new_values: Any,
        tile_sequence: Any,
        tile_row: Any,
        tile_rows: int,
        stream: int,
    ) -> None: ...

def clusters_at_once() -> dict[int, int | str]: ...

class Decode:
    def __init__(self, hidden: int, head_dim: int, layers: list[dict[str, Any]], clusters: list[int]) -> None: ...
    def refusal(self, rows: int) -> str: ...
    def grid(self, rows: int) -> tuple[int, int]: ...
    def pack(self, layers: list[dict[str, Any]]) -> Any: ...
    def schedule(self, rows: int) -> tuple[Any, Any, int]: ...
    def layers(self, rows: int, rings: list[tuple[Any, Any, Any]]) -> Any: ...
    def run(
        self,
        float16: bool,
        packed: Any,
        layers: Any,
        items: Any,
        begins: Any,
        hidden: Any,
        out: Any,
        slots: Any,
        positions: Any,
        outputs: Any,
        states: Any,
        meeting: Any,
        trouble: Any,
        patience: int,
        stream: int,
    ) -> None: ...
