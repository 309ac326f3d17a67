"""Who takes part in `python -m bench encoder`: engines and precisions, in the order of the tables."""

from __future__ import annotations

from bench.peers.table import OPENVINO_NEEDS, ORT_NEEDS, Peer, built_by

OURS = built_by("encoder_ours", "OurEncoder")
PLAIN, COMPILED = built_by("encoder_torch", "TorchEncoder"), built_by("encoder_torch", "CompiledEncoder")
ONNX, OPENVINO = built_by("encoder_graphs", "OnnxRuntimeEncoder"), built_by("encoder_graphs", "OpenVinoEncoder")
CTRANSLATE = built_by("encoder_ctranslate", "CTranslateEncoder")
PEERS = (
    Peer("cpu", "float32", OURS),
    Peer("cpu", "bfloat16", OURS),
    Peer("cpu", "int8", OURS),
    Peer("torch", "float32", PLAIN, ("torch",)),
    Peer("torch", "bfloat16", PLAIN, ("torch",)),
    Peer("compile", "float32", COMPILED, ("torch",)),
    Peer("compile", "bfloat16", COMPILED, ("torch",)),
    Peer("transformers", "float32", built_by("encoder_transformers", "TransformersEncoder")),
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
