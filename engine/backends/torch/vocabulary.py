"""Embedding and vocabulary of the `torch` backend: plain or adaptive, the tails of an adaptive softmax computed only where needed."""

from __future__ import annotations

import numpy as np
import torch

from engine.backends.plan import Stack
from engine.backends.runner import Batch, StepResult
from engine.backends.torch.cache import Groups
from engine_kernels import reference

LOGIT_ROWS = 256  # rows whose logits exist at once when only the target's log-probability is wanted


class TorchVocabulary:
    """The model's tensors outside the layers."""

    def __init__(self, stack: Stack, weights: dict[str, torch.Tensor], embedding_scale: float) -> None:
        self.stack = stack
        self.weights = weights
        self.embedding_scale = embedding_scale
        self.device = weights["embedding.0"].device
        self.pooler = reference.ACTIVATIONS[stack.labels.pooler] if stack.labels is not None and stack.labels.pooler else None
        self.transform = reference.ACTIVATIONS[stack.transform] if stack.transform is not None else None

    def embed(self, ids: np.ndarray, positions: np.ndarray | None, token_types: np.ndarray | None) -> torch.Tensor:
        """ids, positions, token_types [rows] → [rows, hidden] float32: the tokens' rows, what the model adds to them, a norm."""
        plan = self.stack.embedding
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
        hidden = torch.zeros((len(ids), self.stack.hidden), device=self.device)
        for index, cluster in enumerate(self.stack.inputs):
            inside = torch.nonzero((ids >= cluster.start) & (ids < cluster.start + cluster.size))[:, 0]
            if not len(inside):
                continue
            rows = self.weights[f"embedding.{index}"][ids[inside] - cluster.start]
            if cluster.projected:
                rows = reference.linear(rows, self.weights[f"embedding.{index}.projection"], None)
            hidden = hidden.index_put((inside,), rows.float() * self.embedding_scale)
        return hidden

    def finish(self, hidden: torch.Tensor) -> torch.Tensor:
        """The final norm, where the model has one."""
        if self.stack.final_norm_eps is None:
            return hidden
        return reference.layer_norm(hidden, self.weights["final_norm"], self.weights["final_norm_bias"], self.stack.final_norm_eps)

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
        if self.stack.labels is None:
            return self._linear(self._projected(self._transformed(hidden), 0), "head.0", "head.0.bias")
        if self.stack.labels.pooled:
            hidden = hidden[first_rows]
        if self.pooler is not None:
            hidden = self.pooler(self._linear(hidden, "head.pooler", "head.pooler_bias"))
        return self._linear(hidden, "head.labels", "head.labels_bias")

    def _transformed(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.transform is None:
            return hidden
        hidden = self.transform(self._linear(hidden, "head.transform", "head.transform_bias"))
        gain, bias = self.weights["head.transform_norm"], self.weights["head.transform_norm_bias"]
        return reference.layer_norm(hidden, gain, bias, self.stack.transform_eps)

    def head_log_probs(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, n0 + tails]: log-softmax over the first cluster's words and the tails' entries."""
        first = self._projected(hidden, 0)
        logits = self._linear(first, "head.0", "head.0.bias")
        if len(self.stack.outputs) > 1:
            entries = self._linear(hidden if self.stack.clusters_read_hidden else first, "head.clusters", "head.clusters_bias")
            logits = torch.cat((logits, entries), dim=-1)
        return reference.log_softmax(logits)

    def tail_log_probs(self, hidden: torch.Tensor, cluster: int) -> torch.Tensor:
        """[rows, size]: log-softmax inside tail `cluster` ≥ 1, without the mass of its entry."""
        logits = self._linear(self._projected(hidden, cluster), f"head.{cluster}", f"head.{cluster}.bias")
        return reference.log_softmax(logits)

    def log_probs(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, vocab]."""
        head = self.head_log_probs(hidden)
        parts = [head[:, : self.stack.outputs[0].size]]
        for index, cluster in enumerate(self.stack.outputs[1:], start=1):
            parts.append(head[:, cluster.entry, None] + self.tail_log_probs(hidden, index))
        return torch.cat(parts, dim=-1)

    def target_nll(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """[rows]: -log p(target), NaN where the target is -1; a tail is computed only for the rows whose target is in it."""
        head = self.head_log_probs(hidden)
        nll = torch.full((len(targets),), torch.nan, device=hidden.device)
        for index, cluster in enumerate(self.stack.outputs):
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

    def __init__(self, vocabulary: TorchVocabulary, hidden: torch.Tensor, head: torch.Tensor) -> None:
        """hidden [sequences, hidden] after the final norm, head its head_log_probs."""
        self._vocabulary = vocabulary
        self._hidden = hidden
        self.head = _host(head)

    def tail(self, cluster: int, sequences: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            rows = torch.from_numpy(np.asarray(sequences, np.int64)).to(self._hidden.device)
            return _host(self._vocabulary.tail_log_probs(self._hidden[rows], cluster))


def _host(tensor: torch.Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().float().cpu().numpy()
    return array
