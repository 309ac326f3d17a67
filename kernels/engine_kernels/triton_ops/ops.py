"""The contract of ops.py over the Triton kernels: batches of equal lengths in, float32 out."""

from __future__ import annotations

import numpy as np
import torch

from engine_kernels.gpu_ops import Sequences, Tables
from engine_kernels.ops import Visibility
from engine_kernels.triton_ops.attention import attend_constants, attend_ring, attend_rows
from engine_kernels.triton_ops.bidirectional import attend_bidirectional
from engine_kernels.triton_ops.launch import Launcher


class TritonOps:
    """The operations by way of one launcher, which counts what they start."""

    def __init__(self, launch: Launcher) -> None:
        self.launch = launch

    def attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor, tables: Tables, visibility: Visibility
    ) -> torch.Tensor:
        """Attention of T new rows; query [B, H, T, D], keys and values [B, H, W + T, D], positions [B] of row 0; [B, H, T, D] float32."""
        batch, heads, length, head_dim = query.shape
        packed = query.transpose(1, 2).reshape(batch * length, heads, head_dim).to(keys.dtype).contiguous()
        out = torch.empty(packed.shape, dtype=torch.float32, device=packed.device)
        if not heads:
            return out.reshape(batch, heads, length, head_dim)
        past = (keys[:, :, : visibility.reach].contiguous(), values[:, :, : visibility.reach].contiguous())
        new = tuple(rows[:, :, visibility.reach :].transpose(1, 2).reshape(packed.shape).contiguous() for rows in (keys, values))
        order = torch.arange(batch, device=packed.device)
        sequences = Sequences(order * length, torch.full_like(order, length), order, torch.zeros_like(order), positions)
        constants = attend_constants(self.launch, packed, tables, visibility)
        lengths = np.full(batch, length)
        attend_rows(self.launch, packed, past, (new[0], new[1]), constants, sequences, lengths, tables, visibility, out)
        return out.reshape(batch, length, heads, head_dim).transpose(1, 2)

    def attend_cached(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor, tables: Tables, visibility: Visibility
    ) -> torch.Tensor:
        """Attention of one row per sequence, query [B, H, D], against its ring, keys and values [B, H, W, D]; [B, H, D] float32."""
        packed = query.to(keys.dtype).contiguous()
        out = torch.empty(packed.shape, dtype=torch.float32, device=packed.device)
        if not query.shape[1]:
            return out
        order = torch.arange(len(packed), device=packed.device)
        sequences = Sequences(order, torch.ones_like(order), order, torch.zeros_like(order), positions)
        constants = attend_constants(self.launch, packed, tables, visibility)
        attend_ring(self.launch, packed, (keys.contiguous(), values.contiguous()), constants, sequences, tables, visibility, out)
        return out

    def attend_bidirectional(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Bidirectional attention of whole sequences; query, keys, values [B, H, T, D]; [B, H, T, D] float32."""
        batch, heads, length, head_dim = query.shape
        shape = (batch * length, heads, head_dim)
        q, k, v = (rows.to(keys.dtype).transpose(1, 2).reshape(shape).contiguous() for rows in (query, keys, values))
        out = torch.empty(q.shape, dtype=torch.float32, device=q.device)
        order = torch.arange(batch, device=q.device)
        sequences = Sequences(order * length, torch.full_like(order, length), order, order, order)
        attend_bidirectional(self.launch, q, (k, v), sequences, np.full(batch, length), out)
        return out.reshape(batch, length, heads, head_dim).transpose(1, 2)
