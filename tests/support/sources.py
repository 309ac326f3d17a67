"""Synthetic aiha-lab checkpoints of any size and option, as the published trainer writes them, with seeded random weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class AihaSource:
    """The configuration of a source; fields carry the repository's own names."""

    num_layers: int = 2
    num_heads: int = 3
    hidden_dim: int = 12
    feedforward_dim: int = 5
    vocab: int = 23
    cutoffs: tuple[int, ...] = ()
    div_value: int = 1
    max_len: int = 17
    pre_norm: bool = True
    attn_bias: bool = False
    share_r_bias: bool = False
    tie_proj: bool = True
    same_length: bool = True
    mem_length: int = 6
    seq_length: int = 4
    gates: tuple[tuple[float, ...], ...] | None = None  # None: a file without gates
    seed: int = 0
    drop: tuple[str, ...] = field(default=())  # keys left out of the configuration

    def config(self) -> dict[str, Any]:
        """The layout of the repository's config.json."""
        names = ("num_layers", "num_heads", "hidden_dim", "feedforward_dim", "div_value", "max_len")
        switches = ("pre_norm", "attn_bias", "share_r_bias", "tie_proj", "same_length")
        model = {name: asdict(self)[name] for name in (*names, *switches)} | {"cutoffs": list(self.cutoffs), "tie_weight": True}
        loader = {"batch_size": 2, "seq_length": self.seq_length, "mem_length": self.mem_length, "overlap_length": 0}
        kept_model = {key: value for key, value in model.items() if key not in self.drop}
        kept_loader = {key: value for key, value in loader.items() if key not in self.drop}
        return {"project": "HeadGatingTransformer", "model": kept_model, "dataloader": {"test_dataloader": kept_loader}}

    def state(self) -> dict[str, np.ndarray]:
        """The state dict, float32, without a wrapper's prefix; norm weights stand minus one."""
        rng = np.random.default_rng(self.seed)

        def random(*shape: int, scale: float = self.hidden_dim**-0.5) -> np.ndarray:  # logits and scores of a few units
            return (scale * rng.standard_normal(shape)).astype(np.float32)

        d, heads, n = self.hidden_dim, self.num_heads, self.feedforward_dim
        state = self._vocabulary(random)
        for layer in range(self.num_layers):
            p = f"layers.{layer}."
            for name in "qkvr":
                state[f"{p}attn.{name}_proj.weight.data"] = random(d, d)
                if self.attn_bias:
                    state[f"{p}attn.{name}_proj.bias.data"] = random(d)
            if not self.share_r_bias:
                state[f"{p}attn.r_query_bias.data"], state[f"{p}attn.r_pos_bias.data"] = random(d), random(d)
            if n:
                state[f"{p}attn.mem_k.data"] = random(1, heads, n, d // heads, scale=0.7)
                state[f"{p}attn.mem_v.data"] = random(1, heads, n, d // heads)
            if self.gates is not None:
                state[f"{p}attn.gate.gate.data"] = np.array(self.gates[layer], np.float32)
            norm = "norm" if self.pre_norm else "projection.norm"
            state[f"{p}{norm}.weight.data"], state[f"{p}{norm}.bias.data"] = random(d, scale=0.2), random(d)
            state[f"{p}projection.linear.weight.data"], state[f"{p}projection.linear.bias.data"] = random(d, d), random(d)
        state["pos_emb.data"] = random(1, self.max_len, d)
        if self.share_r_bias:
            state["rel_query_bias.data"], state["rel_pos_bias.data"] = random(d), random(d)
        return state

    def _vocabulary(self, random: Any) -> dict[str, np.ndarray]:
        d = self.hidden_dim
        if not self.cutoffs:
            return {
                "word_emb.weight.data": random(self.vocab, d),
                "criterion.project.weight.data": random(self.vocab, d),
                "criterion.project.bias.data": random(self.vocab),
            }
        state = {}
        edges = [0, *self.cutoffs, self.vocab]
        for index in range(len(edges) - 1):
            name, size = ("shortlist" if index == 0 else f"tail.{index - 1}"), edges[index + 1] - edges[index]
            width = d // self.div_value**index
            rows, bias = random(size, width), random(size)
            state[f"word_emb.{name}.0.weight.data"] = rows
            if self.div_value == 1:
                state[f"criterion.{name}.0.weight.data"], state[f"criterion.{name}.0.bias.data"] = rows, bias
                continue
            projection = random(d, width)
            state[f"word_emb.{name}.1.weight.data"] = projection
            tied = self.tie_proj and index > 0  # the shortlist's own is never tied
            state[f"criterion.{name}.0.weight.data"] = projection if tied else random(width, d)
            state[f"criterion.{name}.1.weight.data"], state[f"criterion.{name}.1.bias.data"] = rows, bias
        tails = len(self.cutoffs)
        return state | {"criterion.cluster.weight.data": random(tails, d), "criterion.cluster.bias.data": random(tails)}

    def write(self, folder: Path, *, prefix: str = "", name: str = "checkpoint.ckpt") -> Path:
        """A trainer's checkpoint and config.json in `folder`; returns the checkpoint."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config()), encoding="utf-8")
        return write_state(folder / name, {prefix + key: value for key, value in self.state().items()})


def write_state(path: Path, state: dict[str, np.ndarray]) -> Path:
    """torch.save of the trainer's dict around a state dict; equal arrays (tied weights) stay one storage."""
    import torch

    tensors: dict[int, torch.Tensor] = {}
    network = {key: tensors.setdefault(id(value), torch.from_numpy(value)) for key, value in state.items()}
    torch.save({"epoch": 3, "iteration": 12, "network": network, "optimizer": {"state": {}}, "tracker": {"train": {}}}, path)
    return path


def random_gates(source_layers: int, heads: int, seed: int = 0) -> tuple[tuple[float, ...], ...]:
    """Gate logits of both signs, none of them zero."""
    values = np.random.default_rng(seed).normal(0, 1, (source_layers, heads))
    return tuple(tuple(float(v) for v in row) for row in values)


def gates_keeping(kept: Sequence[Sequence[int]], heads: int) -> tuple[tuple[float, ...], ...]:
    """Gate logits that keep exactly these heads."""
    return tuple(tuple(1.5 if head in numbers else -1.5 for head in range(heads)) for numbers in kept)
