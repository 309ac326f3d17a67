"""Embedding and vocabulary of the GPU backends: the `torch` backend's over GpuKernels; scores of given tokens have no logits in memory."""

from __future__ import annotations

import numpy as np
import torch

from engine.model.plan import Stack
from engine.model.runner import Batch, StepResult
from engine.model.torch_cache import Groups
from engine.model.torch_vocabulary import TorchVocabulary
from engine_kernels.gpu_ops import GpuKernels, Matrix, Norm


class GpuVocabulary(TorchVocabulary):
    """The model's tensors outside the layers."""

    def __init__(
        self,
        stack: Stack,
        weights: dict[str, torch.Tensor],
        matrices: dict[str, Matrix],
        embedding_scale: float,
        kernels: GpuKernels,
    ) -> None:
        """weights and matrices as Storage.vocabulary has them."""
        super().__init__(stack, weights, embedding_scale)
        self._matrices = matrices
        self.weight_bytes = sum(held.nbytes for held in (*weights.values(), *matrices.values()))
        self._kernels = kernels

    def _rows(self, tokens: np.ndarray) -> torch.Tensor:
        """[rows, hidden] float32; the host sorts tokens [rows] into clusters, so that nothing waits for the device."""
        device = self.device
        hidden = torch.empty((len(tokens), self.stack.hidden), device=device)
        for index, cluster in enumerate(self.stack.inputs):
            inside = np.flatnonzero((tokens >= cluster.start) & (tokens < cluster.start + cluster.size))
            if not len(inside):
                continue
            rows = self.weights[f"embedding.{index}"][torch.from_numpy(tokens[inside] - cluster.start).to(device)]
            if cluster.projected:
                rows = self._kernels.project(rows, self._matrices[f"embedding.{index}.projection"])
            hidden[torch.from_numpy(inside).to(device)] = rows.float() * self.embedding_scale
        return hidden

    def finish(self, hidden: torch.Tensor) -> torch.Tensor:
        """The final norm, where the model has one."""
        eps = self.stack.final_norm_eps
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
        size = self.stack.outputs[0].size
        first = self._projected(hidden, 0)
        everything, logit = self._words(first, 0, np.where(targets < size, targets, -1))
        tails = [np.flatnonzero((targets >= c.start) & (targets < c.start + c.size)) for c in self.stack.outputs[1:]]
        if tails:
            source = hidden if self.stack.clusters_read_hidden else first
            entries = self._linear(source, "head.clusters", "head.clusters_bias")  # [rows, tails]
            everything = torch.logaddexp(everything, torch.logsumexp(entries, dim=1))
        nll = everything - logit
        for cluster, (plan, inside) in enumerate(zip(self.stack.outputs[1:], tails, strict=True), start=1):
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
