"""Embedding and vocabulary of the GPU backends: the `torch` backend's over GpuKernels; scores of given tokens have no logits in memory."""

from __future__ import annotations

import numpy as np
import torch

from engine.backends.gpu.rows import copied
from engine.backends.plan import Stack
from engine.backends.runner import Batch, StepResult
from engine.backends.torch.cache import Groups
from engine.backends.torch.embedding import TorchEmbedding
from engine.backends.torch.head import TorchHead
from engine_kernels.gpu_ops import GpuKernels, Matrix, Norm
from engine_kernels.reference import layer_norm


class GpuVocabulary(TorchEmbedding, TorchHead):
    """The model's tensors outside the layers."""

    def __init__(
        self,
        stack: Stack,
        weights: dict[str, torch.Tensor],
        matrices: dict[str, Matrix],
        kernels: GpuKernels,
    ) -> None:
        """weights and matrices as Storage.vocabulary has them."""
        TorchEmbedding.__init__(self, stack, weights)
        TorchHead.__init__(self, stack, weights)
        self._matrices = matrices
        self.weight_bytes = sum(held.nbytes for held in (*weights.values(), *matrices.values()))
        self._kernels = kernels
        plan = stack.embedding
        added = [("embedding.positions", plan.positions), ("embedding.token_types", plan.token_types)]
        self._added = [name for name, rows in added if rows]  # tables whose rows are added to a token's
        self._plain = len(plan.clusters) == 1 and not plan.clusters[0].projected
        self.indices = 1 + len(self._added) if self._plain else 0  # how many of a row `inputs` gives; 0: it gives hidden rows

    def embed(self, ids: np.ndarray, positions: np.ndarray | None, token_types: np.ndarray | None) -> torch.Tensor:
        """ids, positions, token_types [rows] → [rows, hidden] float32."""
        if not self._plain:
            return super().embed(ids, positions, token_types)
        return self._looked_up(copied(list(self._read(ids, positions, token_types)), self.device))

    def inputs(self, ids: np.ndarray, positions: np.ndarray | None, token_types: np.ndarray | None) -> np.ndarray | torch.Tensor:
        """What a decode step takes for ids, positions, token_types [rows], and `begin` makes hidden rows of.

        Of one plain cluster the indices [indices, rows] of what is looked up, which is then part of the step. Else hidden [rows, hidden]:
        the host sorts token ids into their clusters, and in a recorded step every row would read every cluster.
        """
        return self._read(ids, positions, token_types) if self._plain else self.embed(ids, positions, token_types)

    def begin(self, inputs: torch.Tensor) -> torch.Tensor:
        """Hidden rows [rows, hidden] float32 of `inputs` on the device."""
        return self._looked_up(list(inputs)) if self._plain else inputs

    def _read(self, ids: np.ndarray, positions: np.ndarray | None, token_types: np.ndarray | None) -> np.ndarray:
        """[indices, rows] int64: of the embedding, and of each table that is added to it."""
        read = [ids]
        if self.embedding.positions:
            assert positions is not None  # runner.position_rows gives them
            read.append(positions)
        if self.embedding.token_types:
            read.append(np.zeros_like(ids) if token_types is None else token_types)
        return np.stack(read)

    def _looked_up(self, indices: list[torch.Tensor]) -> torch.Tensor:
        """[rows, hidden] float32 of one plain cluster."""
        hidden = self.weights["embedding.0"][indices[0]].float() * self.embedding.scale
        for name, rows in zip(self._added, indices[1:], strict=True):
            hidden = hidden + self.weights[name][rows].float()
        eps = self.embedding.norm_eps
        return hidden if eps is None else layer_norm(hidden, self.weights["embedding.norm"], self.weights["embedding.norm_bias"], eps)

    def _rows(self, tokens: np.ndarray) -> torch.Tensor:
        """[rows, hidden] float32; the host sorts tokens [rows] into clusters, so that nothing waits for the device."""
        hidden = torch.empty((len(tokens), self.hidden), device=self.device)
        clusters = self.embedding.clusters
        inside = [np.flatnonzero((tokens >= c.start) & (tokens < c.start + c.size)) for c in clusters]
        words = [tokens[places] - cluster.start for places, cluster in zip(inside, clusters, strict=True)]
        there = copied([*inside, *words], self.device)
        count = len(clusters)
        for index, (cluster, places, ids) in enumerate(zip(clusters, there[:count], there[count:], strict=True)):
            if not len(places):
                continue
            rows = self.weights[f"embedding.{index}"][ids]
            if cluster.projected:
                rows = self._kernels.project(rows, self._matrices[f"embedding.{index}.projection"])
            hidden[places] = rows.float() * self.embedding.scale
        return hidden

    def final_norm(self, hidden: torch.Tensor) -> torch.Tensor:
        """The final norm, where the model has one."""
        eps = self.head.final_norm_eps
        if eps is None:
            return hidden
        return self._kernels.normalise(hidden, Norm(self.weights["final_norm"], self.weights["final_norm_bias"], eps))

    def result(self, hidden: torch.Tensor, batch: Batch, groups: Groups) -> StepResult:
        """What the batch wants of the hidden rows [rows, hidden]."""
        if batch.want != "target_nll":
            return super().result(hidden, batch, groups)
        assert batch.targets is not None
        nll: np.ndarray = self._nll(hidden, batch.targets).cpu().numpy()
        nll[batch.targets < 0] = np.nan
        return StepResult(nll=nll)

    def _nll(self, hidden: torch.Tensor, targets: np.ndarray) -> torch.Tensor:
        """[rows]: -log p(target); a tail is computed only for the rows whose target is in it."""
        size = self.head.clusters[0].size
        first = self._projected(hidden, 0)
        everything, logit = self._words(first, 0, np.where(targets < size, targets, -1))
        tails = [np.flatnonzero((targets >= c.start) & (targets < c.start + c.size)) for c in self.head.clusters[1:]]
        if tails:
            source = hidden if self.head.clusters_read_hidden else first
            entries = self._linear(source, "head.clusters", "head.clusters_bias")  # [rows, tails]
            everything = torch.logaddexp(everything, torch.logsumexp(entries, dim=1))
        nll = everything - logit
        for cluster, (plan, inside) in enumerate(zip(self.head.clusters[1:], tails, strict=True), start=1):
            if not len(inside):
                continue
            rows = torch.from_numpy(inside).to(hidden.device)
            everything, logit = self._words(self._projected(hidden[rows], cluster), cluster, targets[inside] - plan.start)
            nll[rows] += everything - logit - entries[rows, plan.entry - size]
        return nll

    def _words(self, x: torch.Tensor, cluster: int, targets: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """log Σ exp of a cluster's logits and the target's [rows]."""
        bias = self.weights.get(f"head.{cluster}.bias")
        wanted = torch.from_numpy(targets.astype(np.int64)).to(x.device)
        return self._kernels.score_words(x, self._matrices[f"head.{cluster}"], bias, wanted)

    def _linear(self, x: torch.Tensor, weight: str, bias: str) -> torch.Tensor:
        matrix = self._matrices.get(weight, self.weights.get(weight))
        assert matrix is not None
        return self._kernels.project(x.contiguous(), matrix, self.weights.get(bias))

    def _projected(self, hidden: torch.Tensor, cluster: int) -> torch.Tensor:
        """hidden [rows, hidden] in the width of a cluster."""
        projection = self._matrices.get(f"head.{cluster}.projection")
        return hidden if projection is None else self._kernels.project(hidden.contiguous(), projection)
