"""One layer over a whole sequence in matrices, from the arrays a backend is given: fast enough for a thousand rows of any size.

The equations are those of tests/oracle/attention.py and model.py, whose loops it is held to; heads go one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray]


def layer(shape: Mapping[str, Any], arrays: Arrays, x: np.ndarray) -> np.ndarray:
    """The residual stream [T, hidden] after a layer that starts at position 0, in the dtype of x.

    shape: the fields of engine_kernels.shapes.LayerShape.  arrays: by the names native code takes, any float dtype; gains and products
    are formed already, row i of distances is distance first_distance + i.
    """
    arrays = {name: array.astype(x.dtype) for name, array in arrays.items()}
    stream = x
    if shape["attention"]:
        stream = x + attention(shape["attention"], arrays, norm(shape, arrays, "attention_norm", x) if shape["norm_first"] else x)
    if "attention.output_bias" in arrays:
        stream = stream + arrays["attention.output_bias"]
    if not shape["norm_first"]:
        stream = norm(shape, arrays, "attention_norm", stream)
    if not shape["feed_forward"]:
        return stream
    if shape["norm_first"]:
        return stream + feed_forward(arrays, norm(shape, arrays, "feed_forward_norm", stream))
    return norm(shape, arrays, "feed_forward_norm", stream + feed_forward(arrays, stream))


def norm(shape: Mapping[str, Any], arrays: Arrays, name: str, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(axis=1, keepdims=True)
    spread = np.sqrt((centred * centred).mean(axis=1, keepdims=True) + x.dtype.type(shape["norm_eps"]))
    return centred / spread * arrays[name] + arrays[f"{name}_bias"]


def feed_forward(arrays: Arrays, x: np.ndarray) -> np.ndarray:
    return linear(arrays, "feed_forward.down", np.maximum(linear(arrays, "feed_forward.up", x), 0))


def linear(arrays: Arrays, name: str, x: np.ndarray) -> np.ndarray:
    out = x @ arrays[name].T
    return out + arrays[f"{name}_bias"] if f"{name}_bias" in arrays else out


def attention(shape: Mapping[str, Any], arrays: Arrays, x: np.ndarray) -> np.ndarray:
    """[T, hidden], without the output's bias."""
    heads, dim = shape["heads"], shape["head_dim"]
    parts = [linear(arrays, f"attention.{name}", x).reshape(len(x), heads, dim) for name in ("query", "key", "value")]
    mixed = [head(shape, arrays, h, *(part[:, h] for part in parts)) for h in range(heads)]
    return np.concatenate(mixed, axis=1) @ arrays["attention.output"].T


def head(shape: Mapping[str, Any], arrays: Arrays, h: int, query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
    """One head, [T, head_dim]; the keys of `reach` rows before the stream stand in front of its own, the farthest visible one first."""
    rows, dim, visibility = len(query), shape["head_dim"], shape["visibility"]
    first, reach = visibility["first_distance"], visibility["reach"]
    if visibility["attended_zeros"]:
        before = [np.repeat(arrays[f"attention.zero_{name}"][h][None], first + reach, axis=0) for name in ("key", "value")]
    else:
        before = [np.zeros((first + reach, dim), query.dtype)] * 2
    keys, values = np.concatenate((before[0], key)), np.concatenate((before[1], value))
    distance = first + np.arange(reach)
    position = np.arange(rows)[:, None]
    place = position - distance + first + reach  # [T, reach] into keys
    seen = distance < first + visibility["window"] + (position % visibility["segment"] if visibility["segment"] else 0)
    if not visibility["attended_zeros"]:
        seen = seen & (distance <= position)

    content = query + arrays["attention.content_bias"][h] if "attention.content_bias" in arrays else query
    scores = np.take_along_axis(content @ keys.T, place, axis=1)  # [T, reach]
    if (by_distance := _distances(shape, arrays, h)) is not None:
        biased = query + arrays["attention.position_bias"][h] if "attention.position_bias" in arrays else query
        scores = scores + biased @ by_distance.T
    scores = np.where(seen, scores / np.sqrt(query.dtype.type(dim)), -np.inf)
    if shape["persistent"]:
        scores = np.concatenate((scores, query @ arrays["attention.persistent_keys"][h].T), axis=1)
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares = shares / shares.sum(axis=1, keepdims=True)
    if shape["spans"]:
        ramp, span = query.dtype.type(shape["span_ramp"]), query.dtype.type(shape["spans"][h])
        shares[:, :reach] *= np.clip((1 - distance.astype(query.dtype) + span) / ramp + 1, 0, 1)
        shares = shares / (shares.sum(axis=1, keepdims=True) + query.dtype.type(1e-8))
    spread = np.zeros((rows, len(keys)), query.dtype)
    np.put_along_axis(spread, place, shares[:, :reach], axis=1)
    out = spread @ values
    return out + shares[:, reach:] @ arrays["attention.persistent_values"][h] if shape["persistent"] else out


def _distances(shape: Mapping[str, Any], arrays: Arrays, h: int) -> np.ndarray | None:
    if shape["relative"] == "none":
        return None
    return arrays["attention.distances"][0 if shape["relative"] == "shared" else h]
