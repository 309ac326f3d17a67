"""Token ids → rows of the residual stream of the `torch` backend: rows of clusters, of positions and of token types, a norm."""

from __future__ import annotations

import numpy as np
import torch

from engine.backends.plan import Stack
from engine_kernels import reference


class TorchEmbedding:
    """The tensors embedding.* of a model."""

    def __init__(self, stack: Stack, weights: dict[str, torch.Tensor]) -> None:
        self.embedding = stack.embedding
        self.hidden = stack.hidden
        self.weights = weights
        self.device = weights["embedding.0"].device

    def embed(self, ids: np.ndarray, positions: np.ndarray | None, token_types: np.ndarray | None) -> torch.Tensor:
        """ids, positions, token_types [rows] → [rows, hidden] float32: the tokens' rows, what the model adds to them, a norm."""
        plan = self.embedding
        hidden = self._rows(ids)
        if positions is not None:
            hidden = hidden + self.weights["embedding.positions"][torch.from_numpy(positions).to(self.device)].float()
        if plan.token_types:
            types = torch.zeros(len(ids), dtype=torch.int64) if token_types is None else torch.from_numpy(token_types)
            hidden = hidden + self.weights["embedding.token_types"][types.to(self.device)].float()
        if plan.norm_eps is None:
            return hidden
        return reference.layer_norm(hidden, self.weights["embedding.norm"], self.weights["embedding.norm_bias"], plan.norm_eps)

    def _rows(self, tokens: np.ndarray) -> torch.Tensor:
        """[rows, hidden] float32: each cluster's rows projected together, times the scale."""
        ids = torch.from_numpy(tokens).to(self.device)
        hidden = torch.zeros((len(ids), self.hidden), device=self.device)
        for index, cluster in enumerate(self.embedding.clusters):
            inside = torch.nonzero((ids >= cluster.start) & (ids < cluster.start + cluster.size))[:, 0]
            if not len(inside):
                continue
            rows = self.weights[f"embedding.{index}"][ids[inside] - cluster.start]
            if cluster.projected:
                rows = reference.linear(rows, self.weights[f"embedding.{index}.projection"], None)
            hidden = hidden.index_put((inside,), rows.float() * self.embedding.scale)
        return hidden
