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
    relu: bool,
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
