from typing import Any

import numpy as np

def all_finite(data: np.ndarray[Any, Any], dtype: int) -> bool: ...
def instruction_set() -> str: ...
def instruction_sets() -> list[str]: ...
def call_counts() -> dict[str, int]: ...
def linear(x: np.ndarray[Any, Any], w: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> None: ...
def stored_bytes() -> int: ...
def without_cuda() -> str: ...

class NativeModel:
    def __init__(self, hidden: int, dtype: int, int8: bool, threads: int) -> None: ...
    def add_layer(
        self,
        *,
        heads: int,
        head_dim: int,
        persistent: int,
        window: int,
        segment: int,
        reach: int,
        first: int,
        attended_zeros: bool,
        ramp: float,
        both: bool,
        feed_forward: int,
        activation: int,
        norm_first: bool,
        norm_eps: float,
        arrays: dict[str, np.ndarray[Any, Any]],
    ) -> None: ...
    def set_vocabulary(
        self,
        *,
        inputs: list[tuple[int, int, int, int, bool, bool]],
        outputs: list[tuple[int, int, int, int, bool, bool]],
        clusters_read_hidden: bool,
        final_norm_eps: float | None,
        embedding_scale: float,
        arrays: dict[str, np.ndarray[Any, Any]],
    ) -> None: ...
    def grow(self, slots: int) -> None: ...
    def restart(self, slot: int) -> None: ...
    def set_ends(
        self,
        *,
        positions: int,
        token_types: int,
        embedding_norm_eps: float | None,
        transform: int | None,
        transform_eps: float,
        labels: int,
        pooler: int | None,
        arrays: dict[str, np.ndarray[Any, Any]],
    ) -> None: ...
    def embed(
        self,
        ids: np.ndarray[Any, Any],
        hidden: np.ndarray[Any, Any],
        positions: np.ndarray[Any, Any] | None,
        token_types: np.ndarray[Any, Any] | None,
    ) -> None: ...
    def transform(self, hidden: np.ndarray[Any, Any]) -> None: ...
    def labels(self, hidden: np.ndarray[Any, Any], out: np.ndarray[Any, Any]) -> None: ...
    def logits(self, hidden: np.ndarray[Any, Any], out: np.ndarray[Any, Any]) -> None: ...
    def step(
        self,
        hidden: np.ndarray[Any, Any],
        slots: np.ndarray[Any, Any],
        starts: np.ndarray[Any, Any],
        lengths: np.ndarray[Any, Any],
        taps: np.ndarray[Any, Any] | None,
    ) -> None: ...
    def finish(self, hidden: np.ndarray[Any, Any]) -> None: ...
    def head_log_probs(self, hidden: np.ndarray[Any, Any], out: np.ndarray[Any, Any]) -> None: ...
    def tail_log_probs(self, hidden: np.ndarray[Any, Any], cluster: int, out: np.ndarray[Any, Any]) -> None: ...
    def target_nll(self, hidden: np.ndarray[Any, Any], targets: np.ndarray[Any, Any], out: np.ndarray[Any, Any]) -> None: ...
    @property
    def instruction_set(self) -> str: ...
    @property
    def threads(self) -> int: ...
    def weight_bytes(self) -> tuple[int, int]: ...
