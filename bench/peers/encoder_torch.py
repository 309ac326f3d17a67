"""The encoder as an ordinary PyTorch module, as it stands or compiled: one attention call of PyTorch's own per layer, padding masked."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from bench.peers.base import Skipped
from bench.peers.encoder_base import PaddedEncoder
from bench.suites.encoder.files import EncoderFiles
from engine.backends.torch.runner import torch_dtype
from engine.checkpoint import Checkpoint
from engine.spec import LayerSpec


class PlainEncoder(nn.Module):
    """ids [B, T] and a mask [B, 1, 1, T], true = seen, or None → [B, T, hidden]."""

    words: torch.Tensor
    places: torch.Tensor
    gain: torch.Tensor
    shift: torch.Tensor

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
        super().__init__()
        spec, weights = checkpoint.spec, {name: torch.from_numpy(np.array(array)) for name, array in checkpoint.weights.items()}
        types = weights["embedding.token_types"]
        self.register_buffer("words", weights["embedding.0"].to(dtype))
        self.register_buffer("places", (weights["embedding.positions"] + types[0]).to(dtype))  # every token is of type 0
        self.register_buffer("gain", weights["embedding.norm"].to(dtype))
        self.register_buffer("shift", weights["embedding.norm_bias"].to(dtype))
        self.every = [PlainEncoderLayer(layer, f"layers.{index}.", weights, dtype) for index, layer in enumerate(spec.layers)]
        self.layers = nn.ModuleList(self.every)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        hidden = F.embedding(ids, self.words) + self.places[: ids.shape[1]]
        hidden = F.layer_norm(hidden, self.gain.shape, self.gain, self.shift, 1e-12)
        for layer in self.every:
            hidden = layer(hidden, mask)
        return hidden


class PlainEncoderLayer(nn.Module):
    """Query, key and value in one product; the norm behind each sum."""

    output_bias: torch.Tensor
    qkv: torch.Tensor
    qkv_bias: torch.Tensor
    output: torch.Tensor

    def __init__(self, layer: LayerSpec, prefix: str, weights: Mapping[str, torch.Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        self.heads, self.dim, self.eps = layer.attention.heads, layer.attention.head_dim, layer.norm_eps
        own = {name.removeprefix(prefix).replace(".", "_"): t.to(dtype) for name, t in weights.items() if name.startswith(prefix)}
        self.register_buffer("output_bias", own["attention_output_bias"])
        if self.heads:
            self.register_buffer("qkv", torch.cat([own[f"attention_{part}"] for part in ("query", "key", "value")]))
            self.register_buffer("qkv_bias", torch.cat([own[f"attention_{part}_bias"] for part in ("query", "key", "value")]))
            self.register_buffer("output", own["attention_output"])
        for name, tensor in own.items():
            if not name.startswith("attention_") or name.startswith("attention_norm"):
                self.register_buffer(name, tensor)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        batch, rows, _ = hidden.shape
        if self.heads:
            query, key, value = F.linear(hidden, self.qkv, self.qkv_bias).view(batch, rows, 3, self.heads, self.dim).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
            added = F.linear(mixed.transpose(1, 2).reshape(batch, rows, -1), self.output, self.output_bias)
        else:
            added = self.output_bias
        hidden = self._norm(hidden + added, "attention_norm")
        inner = F.gelu(self._linear(hidden, "feed_forward_up"))
        return self._norm(hidden + self._linear(inner, "feed_forward_down"), "feed_forward_norm")

    def _linear(self, rows: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(rows, getattr(self, name), getattr(self, f"{name}_bias"))

    def _norm(self, rows: torch.Tensor, name: str) -> torch.Tensor:
        gain = getattr(self, name)
        return F.layer_norm(rows, gain.shape, gain, getattr(self, f"{name}_bias"), self.eps)


class TorchEncoder(PaddedEncoder):
    """PyTorch as it stands."""

    def __init__(self, files: EncoderFiles, dtype: str, threads: int) -> None:
        super().__init__(files, dtype, threads)
        self._module = PlainEncoder(files.checkpoint, torch_dtype(dtype)).eval()

    def run(self, ids: np.ndarray, mask: np.ndarray | None) -> Callable[[], np.ndarray]:
        words, seen = torch.from_numpy(ids), None if mask is None else torch.from_numpy(mask).bool()[:, None, None]

        def call() -> np.ndarray:
            torch.set_num_threads(self.threads)  # one pool for the whole process, which others set too
            with torch.inference_mode():
                return self._module(words, seen).float().numpy()  # type: ignore[no-any-return]

        return call


class CompiledEncoder(TorchEncoder):
    """torch.compile; layers of as many heads share what was compiled for one shape. At most MOST shapes: each takes a minute or more."""

    MOST: ClassVar[int] = 2
    done: ClassVar[set[tuple[object, ...]]] = set()

    def __init__(self, files: EncoderFiles, dtype: str, threads: int) -> None:
        super().__init__(files, dtype, threads)
        torch._dynamo.config.recompile_limit = 64  # of one layer's code: head counts, shapes and dtypes
        for layer in self._module.every:
            layer.compile(fullgraph=True, dynamic=False)

    def run(self, ids: np.ndarray, mask: np.ndarray | None) -> Callable[[], np.ndarray]:
        configuration = (self.dtype, self.threads, tuple(layer.heads for layer in self._module.every), ids.shape)
        call = super().run(ids, mask)
        if configuration not in self.done:
            if len(self.done) == self.MOST:
                raise Skipped(f"{self.MOST} shapes are compiled in this run; measure the others in another")
            start = time.perf_counter()
            call()
            self.prepared += time.perf_counter() - start
            self.done.add(configuration)
        return call
