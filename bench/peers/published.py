"""The All-attention forward pass of arXiv 2110.03252 as it was published: what a user of the trained model runs today, in float32.

Memory is the hidden rows that entered each layer. Every step normalises and projects all of them again, projects the distance table
again, and shifts position scores by pad and view over all pairs of rows and keys. A decoded token is a segment of one row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bench.peers.base import PeerRunner
from engine.checkpoint import Checkpoint
from engine.spec import LayerSpec

State = list[torch.Tensor]  # of each layer, [batch, memory, hidden]


class PublishedRunner(PeerRunner):
    """Runner of the published algorithm."""

    def __init__(self, checkpoint: Checkpoint, dtype: str, threads: int) -> None:
        super().__init__(checkpoint, dtype, threads)
        tensors = {name: torch.from_numpy(array) for name, array in checkpoint.weights.items()}
        self._table = tensors["position.table"]  # row = distance
        self._layers = [PublishedLayer(layer, f"layers.{index}.", tensors) for index, layer in enumerate(checkpoint.spec.layers)]
        self._hidden = checkpoint.spec.hidden

    def start(self, batch: int) -> State:
        return [torch.zeros(batch, layer.memory, self._hidden) for layer in self._layers]

    def layers(self, hidden: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        after = []
        for layer, memory in zip(self._layers, state, strict=True):
            after.append(torch.cat((memory, hidden), dim=1)[:, -layer.memory :])
            hidden = layer(hidden, memory, self._table)
        return hidden, after


class PublishedLayer:
    """One layer over a segment and the rows before it."""

    def __init__(self, layer: LayerSpec, prefix: str, tensors: dict[str, torch.Tensor]) -> None:
        a = layer.attention
        assert a.window is not None
        self.heads, self.dim, self.memory, self.eps = a.heads, a.head_dim, a.window - 1, layer.norm_eps
        self.weights = {name[len(prefix) :].removeprefix("attention."): t for name, t in tensors.items() if name.startswith(prefix)}
        self.gain = self.weights["attention_norm"] + layer.norm_offset

    def __call__(self, hidden: torch.Tensor, memory: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """hidden [B, T, d], memory [B, M, d], table [distances, d] → [B, T, d]."""
        w = self.weights
        if not self.heads:
            return hidden + w["output_bias"]
        batch, rows, keys = len(hidden), hidden.shape[1], memory.shape[1] + hidden.shape[1]
        normed = self._norm(hidden)
        seen = torch.cat((self._norm(memory), normed), dim=1)  # [B, M + T, d]
        query = self._split(F.linear(normed, w["query"]))  # [B, H, T, D]
        key, value = self._split(F.linear(seen, w["key"])), self._split(F.linear(seen, w["value"]))  # [B, H, M + T, D]
        distances = F.linear(table[:keys].flip(0), w["relative"]).view(keys, self.heads, self.dim).transpose(0, 1)  # farthest first

        content = (query + w["content_bias"].view(self.heads, 1, self.dim)) @ key.transpose(2, 3)
        position = shifted((query + w["position_bias"].view(self.heads, 1, self.dim)) @ distances.transpose(1, 2))
        scores = (content + position) * self.dim**-0.5  # [B, H, T, M + T]
        distance = torch.arange(rows)[:, None] + self.memory - torch.arange(keys)
        scores = scores.masked_fill((distance < 0) | (distance > self.memory), -torch.inf)
        if "persistent_keys" in w:
            scores = torch.cat((scores, query @ w["persistent_keys"].transpose(1, 2)), dim=-1)
        weights = torch.softmax(scores, dim=-1)
        out = weights[..., :keys] @ value
        if "persistent_values" in w:
            persistent = w["persistent_values"]  # [H, N, D]
            out = out + weights[..., keys:] @ (persistent * persistent.shape[1] ** 0.5)
        return hidden + F.linear(out.transpose(1, 2).reshape(batch, rows, -1), w["output"], w["output_bias"])

    def _norm(self, rows: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(rows, self.gain.shape, self.gain, self.weights["attention_norm_bias"], self.eps)

    def _split(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.view(*rows.shape[:2], self.heads, self.dim).transpose(1, 2)


def shifted(scores: torch.Tensor) -> torch.Tensor:
    """[B, H, T, S] with columns by falling distance → the same with columns by key: row i moves left by T - 1 - i (arXiv 1901.02860, B)."""
    batch, heads, rows, keys = scores.shape
    padded = F.pad(scores, (1, 0)).view(batch, heads, keys + 1, rows)
    return padded[:, :, 1:].reshape(batch, heads, rows, keys)
