"""Stack and folded weights of an encoder → an ONNX graph, in the shape ONNX Runtime's optimiser fuses: Attention with a layer's own heads.

Operators and their meaning: onnx.ai/onnx/operators, opset 17. Padding is masked, not removed: inputs are rectangles.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from engine.backends.plan import Stack
from engine.backends.runner import Folded
from engine.errors import Problem, Unsupported
from engine_kernels.shapes import AttentionShape, LayerShape

OPSET = 17
MOST_BYTES = (1 << 31) - (1 << 20)  # of one protocol-buffers message
HIDDEN = float(np.finfo(np.float32).min)  # what a masked key's score becomes, as in the originals


class Graph:
    """Nodes and constants in the order they are added."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """A node; the name of its result."""
        from onnx import helper

        name = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        """The name of a constant; the same name twice is the same constant."""
        if name not in self.constants:
            self.constants[name] = np.asarray(value, dtype=dtype, order="C")
        return name


def encoder_graph(stack: Stack, folded: Folded) -> bytes:
    """The serialised model: input_ids, attention_mask, token_type_ids int64 [batch, sequence] → logits, without a head last_hidden_state.

    Raises Unsupported for a causal stack, a model of 2 GiB and more, and without the onnx package.
    """
    if stack.causal:
        raise Unsupported(Problem("export onnx", "an encoder", "a causal language model"))
    if (size := sum(array.nbytes for part in (folded.model, *folded.layers) for array in part.values())) > MOST_BYTES:
        raise Unsupported(Problem("export onnx", f"at most {MOST_BYTES / 2**30:.1f} GiB of weights", f"{size / 2**30:.1f} GiB"))
    try:
        from onnx import TensorProto, checker, helper, numpy_helper
    except ImportError:
        raise Unsupported(Problem("export onnx", "the onnx package", "none"), hint="pip install 'headcount[onnx]'") from None
    graph = Graph()
    hidden = _embedding(graph, stack, folded)
    mask = _mask(graph)
    for index, (plan, weights) in enumerate(zip(stack.layers, folded.layers, strict=True)):
        named = {name: graph.constant(f"layers.{index}.{name}", _transposed(name, array)) for name, array in weights.items()}
        hidden = _layer(graph, plan, named, hidden, mask)
    if stack.head.final_norm_eps is not None:
        hidden = _model_norm(graph, folded, hidden, "final_norm", stack.head.final_norm_eps)
    result, axes = _head(graph, stack, folded, hidden)
    name = "logits" if stack.head.has_logits else "last_hidden_state"
    graph.nodes[[node.output[0] for node in graph.nodes].index(result)].output[0] = name
    inputs = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name != "token_type_ids" or stack.embedding.token_types]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "headcount",
            [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]) for name in inputs],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, axes)],
            [numpy_helper.from_array(array, name) for name, array in graph.constants.items()],
        ),
        producer_name="headcount",
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=8,
    )
    checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def _embedding(graph: Graph, stack: Stack, folded: Folded) -> str:
    """[batch, sequence, hidden]; positions count from the ids, passing over the pad token where the model does."""
    plan = stack.embedding
    hidden = graph.add("Gather", graph.constant("embedding.0", folded.model["embedding.0"] * plan.scale), "input_ids")
    if plan.positions:
        table = graph.constant("embedding.positions", folded.model["embedding.positions"])
        hidden = graph.add("Add", hidden, graph.add("Gather", table, _positions(graph, plan.offset, plan.pad)))
    if plan.token_types:
        types = graph.constant("embedding.token_types", folded.model["embedding.token_types"])
        hidden = graph.add("Add", hidden, graph.add("Gather", types, "token_type_ids"))
    if plan.norm_eps is None:
        return hidden
    return _model_norm(graph, folded, hidden, "embedding.norm", plan.norm_eps)


def _positions(graph: Graph, offset: int, pad: int | None) -> str:
    """Rows of the table: 0, 1, 2, … by column [sequence], or the places of the tokens that are no pad [batch, sequence]."""
    one = graph.constant("one", 1, np.int64)
    if pad is None:
        length = graph.add("Gather", graph.add("Shape", "input_ids"), one, axis=0)
        places = graph.add("Range", graph.constant("zero", 0, np.int64), length, one)
        return graph.add("Add", places, graph.constant("offset", offset, np.int64)) if offset else places
    is_pad = graph.add("Equal", "input_ids", graph.constant("pad", pad, np.int64))
    counted = graph.add("Cast", graph.add("Not", is_pad), to=7)  # int64
    places = graph.add("Mul", graph.add("CumSum", counted, one), counted)
    return graph.add("Add", places, graph.constant("offset", offset - 1, np.int64))


def _mask(graph: Graph) -> str:
    """[batch, 1, 1, sequence]: 0 for a token that is seen, the lowest number for one that is not."""
    wide = graph.add("Unsqueeze", "attention_mask", graph.constant("axis.1", [1], np.int64))
    wide = graph.add("Unsqueeze", wide, graph.constant("axis.2", [2], np.int64))
    hidden = graph.add("Sub", graph.constant("one.float", 1.0), graph.add("Cast", wide, to=1))
    return graph.add("Mul", hidden, graph.constant("hidden", HIDDEN))


def _layer(graph: Graph, plan: LayerShape, weights: dict[str, str], hidden: str, mask: str) -> str:
    """Attention and feed-forward with their residuals, normed before or after."""

    def norm(name: str, x: str) -> str:
        return _norm(graph, x, weights[name], weights[f"{name}_bias"], plan.norm_eps)

    def attention(x: str) -> str:
        if plan.attention is None:
            return weights["attention.output_bias"]
        return _attention(graph, plan.attention, weights, x, mask)

    def feed_forward(x: str) -> str:
        inner = _activation(graph, plan.activation, _linear(graph, x, weights, "feed_forward.up"))
        return _linear(graph, inner, weights, "feed_forward.down")

    if plan.norm_first:
        hidden = graph.add("Add", hidden, attention(norm("attention_norm", hidden)))
        return graph.add("Add", hidden, feed_forward(norm("feed_forward_norm", hidden))) if plan.feed_forward else hidden
    hidden = norm("attention_norm", graph.add("Add", attention(hidden), hidden))
    return norm("feed_forward_norm", graph.add("Add", feed_forward(hidden), hidden)) if plan.feed_forward else hidden


def _attention(graph: Graph, plan: AttentionShape, weights: dict[str, str], x: str, mask: str) -> str:
    split = graph.constant(f"shape.{plan.heads}.{plan.head_dim}", [0, 0, plan.heads, plan.head_dim], np.int64)
    joined = graph.constant(f"shape.{plan.heads * plan.head_dim}", [0, 0, plan.heads * plan.head_dim], np.int64)
    query, key, value = (
        graph.add("Transpose", graph.add("Reshape", _linear(graph, x, weights, f"attention.{name}"), split), perm=perm)
        for name, perm in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3]))
    )
    root = graph.constant(f"root.{plan.head_dim}", math.sqrt(plan.head_dim))
    scores = graph.add("Add", graph.add("Div", graph.add("MatMul", query, key), root), mask)
    mixed = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), value)  # [batch, heads, sequence, head_dim]
    rows = graph.add("Reshape", graph.add("Transpose", mixed, perm=[0, 2, 1, 3]), joined)
    return _linear(graph, rows, weights, "attention.output")


def _head(graph: Graph, stack: Stack, folded: Folded, hidden: str) -> tuple[str, list[Any]]:
    """The result's name and axes."""
    head = stack.head
    if head.labels:
        if head.pooled:
            hidden = graph.add("Gather", hidden, graph.constant("zero", 0, np.int64), axis=1)  # [batch, hidden]
        if head.pooler is not None:
            pooled = _linear(graph, hidden, _matrix(graph, folded, "head.pooler"), "head.pooler")
            hidden = _activation(graph, head.pooler, pooled)
        axes = ["batch", head.labels] if head.pooled else ["batch", "sequence", head.labels]
        return _linear(graph, hidden, _matrix(graph, folded, "head.labels"), "head.labels"), axes
    if not head.clusters:
        return hidden, ["batch", "sequence", stack.hidden]
    if head.transform is not None:
        dense = _linear(graph, hidden, _matrix(graph, folded, "head.transform"), "head.transform")
        hidden = _model_norm(graph, folded, _activation(graph, head.transform, dense), "head.transform_norm", head.transform_eps)
    words = graph.add("Transpose", graph.constant(*_words(stack, folded)), perm=[1, 0])
    logits = graph.add("MatMul", hidden, words)
    if "head.0.bias" in folded.model:
        logits = graph.add("Add", logits, graph.constant("head.0.bias", folded.model["head.0.bias"]))
    return logits, ["batch", "sequence", stack.vocab]


def _words(stack: Stack, folded: Folded) -> tuple[str, np.ndarray]:
    """The decoder's rows: the embedding's own constant where they are tied and unscaled, so that the file holds them once."""
    own, rows = folded.model["embedding.0"], folded.model["head.0"]
    tied = own.shape == rows.shape and np.shares_memory(own, rows) and stack.embedding.scale == 1
    return ("embedding.0" if tied else "head.0"), rows


def _activation(graph: Graph, name: str, x: str) -> str:
    """The activations of kernels/engine_kernels/ops.py."""
    if name in ("relu", "tanh"):
        return graph.add("Relu" if name == "relu" else "Tanh", x)
    if name in ("silu", "quick_gelu"):
        inner = x if name == "silu" else graph.add("Mul", x, graph.constant("1.702", 1.702))
        return graph.add("Mul", x, graph.add("Sigmoid", inner))
    half, one = graph.constant("half", 0.5), graph.constant("one.float", 1.0)
    if name == "gelu":
        erf = graph.add("Erf", graph.add("Div", x, graph.constant("root.of.two", math.sqrt(2))))
        return graph.add("Mul", graph.add("Mul", x, graph.add("Add", erf, one)), half)
    cube = graph.add("Mul", graph.add("Pow", x, graph.constant("three", 3.0)), graph.constant("0.044715", 0.044715))
    inner = graph.add("Mul", graph.add("Add", x, cube), graph.constant("root.of.two.by.pi", math.sqrt(2 / math.pi)))
    return graph.add("Mul", graph.add("Mul", x, half), graph.add("Add", graph.add("Tanh", inner), one))


def _linear(graph: Graph, x: str, weights: dict[str, str], name: str) -> str:
    product = graph.add("MatMul", x, weights[name])
    return graph.add("Add", product, weights[f"{name}_bias"]) if f"{name}_bias" in weights else product


def _norm(graph: Graph, x: str, gain: str, bias: str, eps: float) -> str:
    return graph.add("LayerNormalization", x, gain, bias, axis=-1, epsilon=eps)


def _matrix(graph: Graph, folded: Folded, name: str) -> dict[str, str]:
    found = {part: folded.model[part] for part in (name, f"{name}_bias") if part in folded.model}
    return {part: graph.constant(part, _transposed(part, array)) for part, array in found.items()}


def _model_norm(graph: Graph, folded: Folded, x: str, name: str, eps: float) -> str:
    gain, bias = (graph.constant(part, folded.model[part]) for part in (name, f"{name}_bias"))
    return _norm(graph, x, gain, bias, eps)


def _transposed(name: str, array: np.ndarray) -> np.ndarray:
    """Matrices [out, in] as MatMul takes them, [in, out]; vectors as they are."""
    return array.T if array.ndim == 2 else array
