"""What reads the last hidden states of the `torch` backend: final norm, vocabulary or labels; tails computed only where needed."""

from __future__ import annotations

import numpy as np
import torch

from engine.backends.plan import Stack
from engine.backends.runner import Batch, StepResult
from engine.backends.torch.cache import Groups
from engine_kernels import reference

LOGIT_ROWS = 256  # rows whose logits exist at once when only the target's log-probability is wanted


class TorchHead:
    """The tensors head.* and final_norm of a model."""

    def __init__(self, stack: Stack, weights: dict[str, torch.Tensor]) -> None:
        self.head = stack.head
        self.weights = weights
        self.pooler = reference.ACTIVATIONS[stack.head.pooler] if stack.head.pooler is not None else None
        self.transform = reference.ACTIVATIONS[stack.head.transform] if stack.head.transform is not None else None

    def final_norm(self, hidden: torch.Tensor) -> torch.Tensor:
        """The final norm, where the model has one."""
        if self.head.final_norm_eps is None:
            return hidden
        return reference.layer_norm(hidden, self.weights["final_norm"], self.weights["final_norm_bias"], self.head.final_norm_eps)

    def result(self, hidden: torch.Tensor, batch: Batch, groups: Groups) -> StepResult:
        """What the batch wants of the hidden rows [rows, hidden]."""
        if batch.want == "hidden":
            return StepResult(hidden=_host(hidden))
        if batch.want == "logits":
            return StepResult(logits=_host(self.logits(hidden, groups.first_rows)))
        if batch.want == "log_probs":
            return StepResult(log_probs=_host(self.log_probs(hidden)))
        if batch.want == "next":
            last = hidden[groups.last_rows]
            return StepResult(next=TorchNextToken(self, last, self.head_log_probs(last)))
        assert batch.targets is not None
        targets = torch.from_numpy(batch.targets).to(hidden.device)
        parts = [
            self.target_nll(hidden[row : row + LOGIT_ROWS], targets[row : row + LOGIT_ROWS]) for row in range(0, len(hidden), LOGIT_ROWS)
        ]
        return StepResult(nll=_host(torch.cat(parts)))

    def logits(self, hidden: torch.Tensor, first_rows: torch.Tensor) -> torch.Tensor:
        """Of labels [rows, labels], pooled [sequences, labels]; of the vocabulary [rows, vocab]."""
        if not self.head.labels:
            return self._linear(self._projected(self._transformed(hidden), 0), "head.0", "head.0.bias")
        if self.head.pooled:
            hidden = hidden[first_rows]
        if self.pooler is not None:
            hidden = self.pooler(self._linear(hidden, "head.pooler", "head.pooler_bias"))
        return self._linear(hidden, "head.labels", "head.labels_bias")

    def _transformed(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.transform is None:
            return hidden
        hidden = self.transform(self._linear(hidden, "head.transform", "head.transform_bias"))
        gain, bias = self.weights["head.transform_norm"], self.weights["head.transform_norm_bias"]
        return reference.layer_norm(hidden, gain, bias, self.head.transform_eps)

    def head_log_probs(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, n0 + tails]: log-softmax over the first cluster's words and the tails' entries."""
        first = self._projected(hidden, 0)
        logits = self._linear(first, "head.0", "head.0.bias")
        if len(self.head.clusters) > 1:
            entries = self._linear(hidden if self.head.clusters_read_hidden else first, "head.clusters", "head.clusters_bias")
            logits = torch.cat((logits, entries), dim=-1)
        return reference.log_softmax(logits)

    def tail_log_probs(self, hidden: torch.Tensor, cluster: int) -> torch.Tensor:
        """[rows, size]: log-softmax inside tail `cluster` ≥ 1, without the mass of its entry."""
        logits = self._linear(self._projected(hidden, cluster), f"head.{cluster}", f"head.{cluster}.bias")
        return reference.log_softmax(logits)

    def log_probs(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, vocab]."""
        head = self.head_log_probs(hidden)
        parts = [head[:, : self.head.clusters[0].size]]
        for index, cluster in enumerate(self.head.clusters[1:], start=1):
            parts.append(head[:, cluster.entry, None] + self.tail_log_probs(hidden, index))
        return torch.cat(parts, dim=-1)

    def target_nll(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """[rows]: -log p(target), NaN where the target is -1; a tail is computed only for the rows whose target is in it."""
        head = self.head_log_probs(hidden)
        nll = torch.full((len(targets),), torch.nan, device=hidden.device)
        for index, cluster in enumerate(self.head.clusters):
            rows = torch.nonzero((targets >= cluster.start) & (targets < cluster.start + cluster.size))[:, 0]
            if not len(rows):
                continue
            words = (targets[rows] - cluster.start)[:, None]
            if index == 0:
                nll[rows] = -head[rows].gather(1, words)[:, 0]
            else:
                nll[rows] = -(head[rows, cluster.entry] + self.tail_log_probs(hidden[rows], index).gather(1, words)[:, 0])
        return nll

    def _linear(self, x: torch.Tensor, weight: str, bias: str) -> torch.Tensor:
        """x · weightᵀ + bias by their names, float32; a bias may be missing."""
        return reference.linear(x, self.weights[weight], self.weights.get(bias))

    def _projected(self, hidden: torch.Tensor, cluster: int) -> torch.Tensor:
        projection = self.weights.get(f"head.{cluster}.projection")  # [hidden, width]
        return hidden if projection is None else reference.linear(hidden, projection.T, None)


class TorchNextToken:
    """runner.NextToken over the last hidden row of each sequence."""

    def __init__(self, model_head: TorchHead, hidden: torch.Tensor, head: torch.Tensor) -> None:
        """hidden [sequences, hidden] after the final norm, head its head_log_probs."""
        self._model_head = model_head
        self._hidden = hidden
        self.head = _host(head)

    def tail(self, cluster: int, sequences: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            rows = torch.from_numpy(np.asarray(sequences, np.int64)).to(self._hidden.device)
            return _host(self._model_head.tail_log_probs(self._hidden[rows], cluster))


def _host(tensor: torch.Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().float().cpu().numpy()
    return array
