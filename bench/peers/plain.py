"""The compact layers as an ordinary PyTorch module with the key and value caches as arguments: what is compiled and what is exported."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from engine.backends.fold import fold
from engine.backends.plan import compile_stack
from engine.backends.torch.runner import torch_dtype
from engine.checkpoint import Checkpoint
from engine_kernels.shapes import LayerShape

Cache = tuple[torch.Tensor, torch.Tensor]  # keys and values [batch, heads, memory, D], oldest first


class PlainStack(nn.Module):
    """All layers; caches of the layers with heads only, in order, keys then values of each."""

    def __init__(self, checkpoint: Checkpoint, dtype: str) -> None:
        super().__init__()
        plans, folded = compile_stack(checkpoint.spec).layers, fold(checkpoint).layers
        self.every = [PlainLayer(plan, arrays, torch_dtype(dtype)) for plan, arrays in zip(plans, folded, strict=True)]
        self.layers = nn.ModuleList(self.every)

    def start(self, batch: int) -> list[torch.Tensor]:
        """Caches at the start of `batch` streams."""
        return [rows.expand(batch, -1, layer.memory, -1).contiguous() for layer in self.every if layer.heads for rows in layer.zero_rows()]

    def forward(self, hidden: torch.Tensor, *caches: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """hidden [batch, rows, hidden] and caches → the same after these rows."""
        after: list[torch.Tensor] = []
        for layer in self.every:
            if layer.heads:
                hidden, keys, values = layer(hidden, *caches[len(after) : len(after) + 2])
                after += [keys, values]
            else:
                hidden = hidden + layer.output_bias
        return (hidden, *after)


class PlainLayer(nn.Module):
    """One pre-norm All-attention layer: keys and values kept, distances projected once at load, one softmax over all scores."""

    gain: torch.Tensor
    shift: torch.Tensor
    qkv: torch.Tensor
    content_bias: torch.Tensor
    position_bias: torch.Tensor
    distances: torch.Tensor
    zero_key: torch.Tensor
    zero_value: torch.Tensor
    persistent_keys: torch.Tensor
    persistent_values: torch.Tensor
    output: torch.Tensor
    output_bias: torch.Tensor

    def __init__(self, plan: LayerShape, arrays: dict[str, np.ndarray], dtype: torch.dtype) -> None:
        super().__init__()
        a = plan.attention
        self.heads, self.eps, self.dtype = (a.heads if a else 0), plan.norm_eps, dtype
        tensors = {name.removeprefix("attention."): torch.from_numpy(np.array(array)) for name, array in arrays.items()}
        self.register_buffer("output_bias", tensors["output_bias"])
        if a is None:
            return
        self.dim, self.memory = a.head_dim, a.visibility.reach - 1
        biases = {name: tensors[name].view(self.heads, 1, self.dim) for name in ("content_bias", "position_bias")}
        narrow = {
            "qkv": torch.cat([tensors[name] for name in ("query", "key", "value")]),
            "output": tensors["output"],
            "distances": tensors["distances"].flip(1).transpose(1, 2).contiguous(),  # [H, D, W], farthest first
            "zero_key": tensors["zero_key"][:, None],
            "zero_value": tensors["zero_value"][:, None],
            **biases,
        }
        self.persistent = a.persistent
        if a.persistent:
            narrow["persistent_keys"] = tensors["persistent_keys"].transpose(1, 2).contiguous()  # [H, D, N]
            narrow["persistent_values"] = tensors["persistent_values"]  # [H, N, D]
        for name, tensor in narrow.items():
            self.register_buffer(name, tensor.to(dtype))
        self.register_buffer("gain", tensors["attention_norm"])
        self.register_buffer("shift", tensors["attention_norm_bias"])

    def zero_rows(self) -> Cache:
        return self.zero_key, self.zero_value

    def forward(self, hidden: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """hidden [B, T, d] float32; keys and values [B, H, M, D]."""
        batch, rows, _ = hidden.shape
        normed = F.layer_norm(hidden, self.gain.shape, self.gain, self.shift, self.eps).to(self.dtype)
        query, key, value = F.linear(normed, self.qkv).view(batch, rows, 3, self.heads, self.dim).permute(2, 0, 3, 1, 4)
        keys, values = torch.cat((keys, key), dim=2), torch.cat((values, value), dim=2)  # [B, H, M + T, D]
        scale = self.dim**-0.5
        content = ((query + self.content_bias) * scale) @ keys.transpose(2, 3)  # [B, H, T, M + T]
        position = self._shared((query + self.position_bias) * scale, self.distances)  # [B, H, T, M + 1]
        scores = content + self._placed(position) + self._hidden_keys(rows)
        if self.persistent:
            scores = torch.cat((scores, self._shared(query, self.persistent_keys)), dim=-1)
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(self.dtype)
        seen = self.memory + rows
        out = weights[..., :seen] @ values
        if self.persistent:
            out = out + self._shared(weights[..., seen:], self.persistent_values)
        out = out.transpose(1, 2).reshape(batch, rows, self.heads * self.dim)
        out = F.linear(out, self.output).float() + self.output_bias
        return hidden + out, keys[:, :, rows:].contiguous(), values[:, :, rows:].contiguous()

    def _shared(self, x: torch.Tensor, constant: torch.Tensor) -> torch.Tensor:
        """x [B, H, T, k] · constant [H, k, n], the batch as more rows of one product per head."""
        batch, heads, rows, inner = x.shape
        if batch == 1:
            return (x[0] @ constant)[None]
        packed = x.transpose(0, 1).reshape(heads, batch * rows, inner) @ constant
        return packed.view(heads, batch, rows, -1).transpose(0, 1)

    def _placed(self, scores: torch.Tensor) -> torch.Tensor:
        """[B, H, T, M + 1] by falling distance → [B, H, T, M + T] by key: row i moves right by i."""
        batch, heads, rows, reach = scores.shape
        if rows == 1:
            return scores
        width = reach + rows - 1
        return F.pad(scores, (0, rows)).view(batch, heads, -1)[..., : rows * width].view(batch, heads, rows, width)

    def _hidden_keys(self, rows: int) -> torch.Tensor | float:
        """-∞ where a key is before or after what a row sees."""
        if rows == 1:
            return 0.0
        steps = torch.arange(self.memory + rows)[None, :] - torch.arange(rows)[:, None]
        return torch.zeros(steps.shape, dtype=self.dtype).masked_fill((steps < 0) | (steps > self.memory), -torch.inf)
