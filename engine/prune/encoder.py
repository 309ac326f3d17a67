"""A differentiable encoder with a head mask, over a Checkpoint's own tensors: what heads are ranked on and models are fine-tuned with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange

from engine.backends.plan import compile_stack
from engine.checkpoint import Checkpoint
from engine.errors import InputError, Problem, Unsupported
from engine.prune.batches import TaggedBatch
from engine.spec import Absolute, Labels, LayerSpec, ModelSpec
from engine_kernels import reference

Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]
HeadMask = Sequence[torch.Tensor]  # per layer [heads], or [B, heads] for a mask of each sequence


def attend(_: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, seen: torch.Tensor, dropout: float) -> torch.Tensor:
    """Attention of one layer; query, key, value [B, H, T, D], seen [B, 1, 1, T]; [B, H, T, D]."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=seen, dropout_p=dropout)


class TaggingEncoder:
    """Token classification by a bidirectional encoder in float32; every weight may be trained.

    Raises Unsupported for a stack that is no such encoder, InputError where the checkpoint has no head of token labels.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        require_encoder(checkpoint.spec)
        self.checkpoint = checkpoint
        self.spec = checkpoint.spec
        self.device = device
        self.weights = {
            name: torch.tensor(np.asarray(array, np.float32), device=device, requires_grad=True)
            for name, array in checkpoint.weights.items()
        }
        self.dropout = 0.0  # of the embedding, each sublayer's output, the attention weights and the head's input; set while training
        feed_forwards = [layer.feed_forward for layer in self.spec.layers]
        self.activations = [reference.ACTIVATIONS[f.activation] if f else None for f in feed_forwards]

    def logits(self, batch: TaggedBatch, head_mask: HeadMask | None = None, attend: Attend = attend) -> torch.Tensor:
        """[W, labels] of the batch's words; head_mask multiplies each head's output."""
        hidden = self._embed(batch)  # [tokens, hidden]
        for index, layer in enumerate(self.spec.layers):
            mask = None if head_mask is None else head_mask[index]
            hidden = self._layer(index, layer, hidden, batch.seen, mask, attend)
        if self.spec.final_norm:
            hidden = self._norm("final_norm", hidden, self.spec.layers[-1])
        words = self._drop(hidden[batch.word])  # [W, hidden]
        return reference.linear(words, self.weights["head.labels"], self.weights["head.labels_bias"])

    def loss(self, batch: TaggedBatch, head_mask: HeadMask | None = None) -> torch.Tensor:
        """Cross-entropy, the mean over the batch's words."""
        return F.cross_entropy(self.logits(batch, head_mask), batch.labels)

    def full_mask(self, sequences: int | None = None) -> list[torch.Tensor]:
        """Ones [heads], or [sequences, heads], for every layer, that ask for a gradient."""
        shape = () if sequences is None else (sequences,)
        heads = [layer.attention.heads for layer in self.spec.layers]
        return [torch.ones((*shape, h), device=self.device, requires_grad=True) for h in heads]

    def trained(self, **provenance: object) -> Checkpoint:
        """The checkpoint with the weights as they are now."""
        weights = {name: tensor.detach().cpu().numpy() for name, tensor in self.weights.items()}
        return replace(self.checkpoint, weights=weights, provenance={**self.checkpoint.provenance, **provenance})

    def _embed(self, batch: TaggedBatch) -> torch.Tensor:
        e = self.spec.embedding
        hidden = F.embedding(batch.ids, self.weights["embedding.0"]) * e.scale
        if e.positions:
            hidden = hidden + F.embedding(batch.place + e.position_offset, self.weights["embedding.positions"])
        if e.token_types:
            hidden = hidden + self.weights["embedding.token_types"][0]
        if e.norm:
            hidden = self._norm("embedding.norm", hidden, replace(self.spec.layers[0], norm_offset=0.0))
        return self._drop(hidden)

    def _layer(
        self, index: int, layer: LayerSpec, hidden: torch.Tensor, seen: torch.Tensor, mask: torch.Tensor | None, attend: Attend
    ) -> torch.Tensor:
        prefix = f"layers.{index}."
        if layer.norm_first:
            x = self._norm(prefix + "attention_norm", hidden, layer)
            hidden = hidden + self._drop(self._attention(index, layer, x, seen, mask, attend))
            if layer.feed_forward is not None:
                hidden = hidden + self._drop(self._feed_forward(index, self._norm(prefix + "feed_forward_norm", hidden, layer)))
            return hidden
        hidden = hidden + self._drop(self._attention(index, layer, hidden, seen, mask, attend))
        hidden = self._norm(prefix + "attention_norm", hidden, layer)
        if layer.feed_forward is None:
            return hidden
        return self._norm(prefix + "feed_forward_norm", hidden + self._drop(self._feed_forward(index, hidden)), layer)

    def _attention(
        self, index: int, layer: LayerSpec, x: torch.Tensor, seen: torch.Tensor, mask: torch.Tensor | None, attend: Attend
    ) -> torch.Tensor:
        a, w = layer.attention, self.weights
        prefix = f"layers.{index}.attention."
        bias = w.get(prefix + "output_bias")
        if not a.heads:
            return torch.zeros_like(x) if bias is None else bias.expand_as(x)
        query, key, value = (
            _padded(reference.linear(x, w[prefix + name], w.get(f"{prefix}{name}_bias")), seen, a.heads)
            for name in ("query", "key", "value")
        )  # [B, heads, T, head_dim]
        out = attend(index, query * a.score_scale, key, value, seen[:, None, None, :], self.dropout).transpose(1, 2)
        if a.scaled:
            out = out * w[prefix + "head_scale"][:, None]
        if mask is not None:
            out = out * (mask[:, None, :, None] if mask.ndim == 2 else mask[:, None])
        return reference.linear(out[seen].flatten(-2), w[prefix + "output"], bias)

    def _feed_forward(self, index: int, x: torch.Tensor) -> torch.Tensor:
        w, prefix, activation = self.weights, f"layers.{index}.feed_forward.", self.activations[index]
        assert activation is not None
        up_bias, down_bias = w.get(prefix + "up_bias"), w.get(prefix + "down_bias")
        return reference.feed_forward(x, w[prefix + "up"], up_bias, w[prefix + "down"], down_bias, activation)

    def _norm(self, name: str, x: torch.Tensor, layer: LayerSpec) -> torch.Tensor:
        return reference.layer_norm(x, self.weights[name] + layer.norm_offset, self.weights[f"{name}_bias"], layer.norm_eps)

    def _drop(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, self.dropout) if self.dropout else x


def _padded(rows: torch.Tensor, seen: torch.Tensor, heads: int) -> torch.Tensor:
    """rows [tokens, heads · D] → [B, heads, T, D], zeros where nothing is seen."""
    padded = rows.new_zeros((*seen.shape, rows.shape[-1])).masked_scatter(seen[..., None], rows)
    split: torch.Tensor = rearrange(padded, "text row (head dim) -> text head row dim", head=heads)
    return split


def require_encoder(spec: ModelSpec) -> None:
    """Raise Unsupported for what TaggingEncoder does not compute, InputError without a head of token labels."""
    compile_stack(spec)
    problems = [
        Problem(f"layers.{index}.attention", "a bidirectional layer with positions in the embedding", _kind(layer))
        for index, layer in enumerate(spec.layers)
        if layer.attention.causal or not isinstance(layer.attention.position, Absolute | None)
    ]
    if len(spec.embedding.clusters) > 1 or spec.embedding.clusters[0].projected:
        problems.append(Problem("embedding", "one table of words, not projected", f"{len(spec.embedding.clusters)} clusters"))
    if problems:
        raise Unsupported(problems, hint="heads are ranked on BERT-like encoders")
    if not isinstance(spec.head, Labels) or spec.head.pooled:
        hint = "rank a model fine-tuned for tagging: `headcount prune trials` makes one from any encoder"
        raise InputError(Problem("model", "a head of token labels", f"task {spec.task}"), hint=hint)


def _kind(layer: LayerSpec) -> str:
    return f"a {'causal' if layer.attention.causal else 'bidirectional'} one with {type(layer.attention.position).__name__} positions"


def with_labels(checkpoint: Checkpoint, names: Sequence[str], seed: int) -> Checkpoint:
    """The encoder with a new, untrained head of these token labels instead of what it has: normal, spread 0.02 (arXiv 1810.04805)."""
    count, hidden = len(names), checkpoint.spec.hidden
    spec = replace(checkpoint.spec, head=Labels(count, False), task="token_classification")
    draw = np.random.default_rng(seed).standard_normal((count, hidden), dtype=np.float32)
    body = {name: array for name, array in checkpoint.weights.items() if not name.startswith("head.")}
    head = {"head.labels": np.float32(0.02) * draw, "head.labels_bias": np.zeros(count, np.float32)}
    return replace(checkpoint, spec=spec, weights={**body, **head}, provenance={**checkpoint.provenance, "labels": list(names)})
