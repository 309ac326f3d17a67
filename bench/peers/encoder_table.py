"""Who takes part in `python -m bench encoder`: engines and precisions, in the order of the tables."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from bench.peers.table import OPENVINO_NEEDS, ORT_NEEDS, Build, Peer
from bench.suites.encoder.files import EncoderFiles


def _encoder(module: str, name: str) -> Build:
    """An EncoderEngine of this package, imported when it is built."""

    def build(files: EncoderFiles, dtype: str, threads: int) -> Any:
        return getattr(import_module(f"bench.peers.encoder_{module}"), name)(files, dtype, threads)

    return build


OURS, PLAIN, COMPILED = _encoder("ours", "OurEncoder"), _encoder("torch", "TorchEncoder"), _encoder("torch", "CompiledEncoder")
ONNX, OPENVINO = _encoder("graphs", "OnnxRuntimeEncoder"), _encoder("graphs", "OpenVinoEncoder")
CTRANSLATE = _encoder("ctranslate", "CTranslateEncoder")
PEERS = (
    Peer("cpu", "float32", OURS),
    Peer("cpu", "bfloat16", OURS),
    Peer("cpu", "int8", OURS),
    Peer("torch", "float32", PLAIN, ("torch",)),
    Peer("torch", "bfloat16", PLAIN, ("torch",)),
    Peer("compile", "float32", COMPILED, ("torch",)),
    Peer("compile", "bfloat16", COMPILED, ("torch",)),
    Peer("transformers", "float32", _encoder("transformers", "TransformersEncoder")),
    Peer("onnxruntime", "float32", ONNX, ORT_NEEDS),
    Peer("onnxruntime", "bfloat16", ONNX, ORT_NEEDS, "ONNX Runtime has no bfloat16 products on processors"),
    Peer("onnxruntime", "int8", ONNX, ORT_NEEDS),
    Peer("openvino", "float32", OPENVINO, OPENVINO_NEEDS),
    Peer("openvino", "bfloat16", OPENVINO, OPENVINO_NEEDS),
    Peer("openvino", "int8", OPENVINO, OPENVINO_NEEDS, "OpenVINO quantises through nncf, with texts to calibrate on"),
    Peer("ctranslate2", "float32", CTRANSLATE, ("ctranslate2",)),
    Peer("ctranslate2", "bfloat16", CTRANSLATE, ("ctranslate2",), "CTranslate2 computes bfloat16 on GPUs and some processors only"),
    Peer("ctranslate2", "int8", CTRANSLATE, ("ctranslate2",)),
)
