"""Who takes part in `python -m bench cpu`: engines and precisions, in the order of the tables, and why one cannot run here."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from engine.backends.choice import RUNNERS, build_runner
from engine.backends.fold import fold
from engine.backends.plan import compile_stack
from engine.backends.runner import Limits, Runner
from engine.checkpoint import Checkpoint
from engine_kernels.backends import Wanted, resolve
from engine_kernels.errors import KernelError

# Of a checkpoint or the files of an encoder, a precision and a number of threads: a Runner or an EncoderEngine.
Build = Callable[[Any, str, int], Any]


@dataclass(frozen=True)
class Peer:
    """One engine in one precision. packages: what it needs; never: why it has no such precision anywhere, where that is so."""

    engine: str
    dtype: str
    build: Build
    packages: tuple[str, ...] = ()
    never: str | None = None

    @property
    def name(self) -> str:
        return f"{self.engine} {self.dtype}"

    @property
    def ours(self) -> bool:
        return self.engine == "cpu"

    def refusal(self) -> str | None:
        """Why it cannot run here, None where it can as far as is known before it is built."""
        absent = [package for package in self.packages if find_spec(package) is None]
        if absent:
            return f"{', '.join(absent)} not installed"
        if self.engine in RUNNERS:
            wanted = Wanted(quantization="int8") if self.dtype == "int8" else Wanted(dtype=self.dtype)
            try:
                resolve(self.engine, wanted)
            except KernelError as error:
                return error.got
        return self.never


def taking_part(peers: Sequence[Peer], named: Collection[str]) -> tuple[Peer, ...]:
    """Those a user named, by engine or engine:dtype, in the order of the table; of our own the named ones, or all where none is."""
    chosen = [peer for peer in peers if {peer.engine, f"{peer.engine}:{peer.dtype}"} & set(named)]
    none_of_ours = not any(peer.ours for peer in chosen)
    return tuple(peer for peer in peers if peer in chosen or (peer.ours and none_of_ours))


def _backend(name: str) -> Build:
    """One of our own backends; int8 is float32 with its weights quantised."""

    def build(checkpoint: Checkpoint, dtype: str, threads: int) -> Runner:
        options: dict[str, Any] = {"dtype": dtype, "device": "auto", "threads": threads}
        if dtype == "int8":
            options |= {"dtype": "float32", "quantization": "int8"}
        return build_runner(name, compile_stack(checkpoint.spec), fold(checkpoint), Limits(**options))

    return build


def built_by(module: str, name: str) -> Build:
    """A runner or an encoder of this package, imported when it is built."""

    def build(source: Any, dtype: str, threads: int) -> Any:
        return getattr(import_module(f"bench.peers.{module}"), name)(source, dtype, threads)

    return build


PUBLISHED, COMPILED = built_by("published", "PublishedRunner"), built_by("compiled", "CompiledRunner")
ONNX, OPENVINO = built_by("onnx_runtime", "OnnxRuntimeRunner"), built_by("open_vino", "OpenVinoRunner")
ORT_NEEDS, OPENVINO_NEEDS = ("torch", "onnx", "onnxruntime"), ("torch", "onnx", "openvino")
PEERS = (
    Peer("cpu", "float32", _backend("cpu")),
    Peer("cpu", "bfloat16", _backend("cpu")),
    Peer("cpu", "int8", _backend("cpu")),
    Peer("published", "float32", PUBLISHED, ("torch",)),
    Peer("torch", "float32", _backend("torch"), ("torch",)),
    Peer("torch", "bfloat16", _backend("torch"), ("torch",)),
    Peer("compile", "float32", COMPILED, ("torch",)),
    Peer("compile", "bfloat16", COMPILED, ("torch",)),
    Peer("onnxruntime", "float32", ONNX, ORT_NEEDS),
    Peer("onnxruntime", "bfloat16", ONNX, ORT_NEEDS, "ONNX Runtime has no bfloat16 products on processors"),
    Peer("onnxruntime", "int8", ONNX, ORT_NEEDS),
    Peer("openvino", "float32", OPENVINO, OPENVINO_NEEDS),
    Peer("openvino", "bfloat16", OPENVINO, OPENVINO_NEEDS),
    Peer("openvino", "int8", OPENVINO, OPENVINO_NEEDS, "OpenVINO quantises through nncf, with texts to calibrate on"),
)
