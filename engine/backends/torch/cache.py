"""Keys and values of the `torch` backend: rings in slots, and the sequences of a batch grouped by length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from einops import rearrange

from engine.backends.runner import Batch
from engine_kernels import reference
from engine_kernels.ops import AttentionTables, Visibility

Tables = AttentionTables[torch.Tensor]


@dataclass(frozen=True)
class Group:
    """B sequences of T rows each. rows [B, T] of the packed batch, None = all of them in order; slots, starts [B]."""

    batch: int
    length: int
    rows: torch.Tensor | None
    slots: torch.Tensor
    starts: torch.Tensor
    end: int  # the position behind the last row of any of them
    adjacent: slice | None  # the slots as a range, where they are one

    def take(self, packed: torch.Tensor) -> torch.Tensor:
        """[rows, H, D] → [B, H, T, D]."""
        rows = packed.reshape(self.batch, self.length, *packed.shape[1:]) if self.rows is None else packed[self.rows]
        return rows.transpose(1, 2)


class Groups:
    """The sequences of a batch by length, so that each group is one rectangular tensor."""

    def __init__(self, batch: Batch, device: torch.device) -> None:
        ends = np.cumsum(batch.lengths)
        self.first_rows = torch.from_numpy(ends - batch.lengths).to(device)
        self.last_rows = torch.from_numpy(ends - 1).to(device)
        self._groups = [_group(batch, ends, length, device) for length in np.unique(batch.lengths).tolist()]

    def __iter__(self) -> Iterator[Group]:
        return iter(self._groups)

    def packed(self, parts: list[torch.Tensor]) -> torch.Tensor:
        """The groups' [B, H, T, D] back to [rows, H · D]."""
        rows = [rearrange(part, "sequence head row dim -> (sequence row) (head dim)") for part in parts]
        if len(rows) == 1:
            return rows[0]
        order = torch.cat([group.rows.flatten() for group in self._groups if group.rows is not None])
        return torch.cat(rows)[torch.argsort(order)]


def _group(batch: Batch, ends: np.ndarray, length: int, device: torch.device) -> Group:
    chosen = np.flatnonzero(batch.lengths == length)
    slots = batch.slots[chosen]
    adjacent = bool(np.array_equal(slots, np.arange(slots[0], slots[0] + len(slots))))
    rows = None
    if len(chosen) < len(batch.lengths):
        rows = torch.from_numpy((ends[chosen] - length)[:, None] + np.arange(length)).to(device)
    return Group(
        batch=len(chosen),
        length=length,
        rows=rows,
        slots=torch.from_numpy(np.asarray(slots, np.int64)).to(device),
        starts=torch.from_numpy(np.asarray(batch.starts[chosen], np.int64)).to(device),
        end=int(batch.starts[chosen].max()) + length,
        adjacent=slice(int(slots[0]), int(slots[0]) + len(slots)) if adjacent else None,
    )


class Past(Protocol):
    """What stands before the new rows of a layer."""

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, group: Group, tables: Tables, visibility: Visibility
    ) -> torch.Tensor:
        """query, key, value [B, H, T, D] of a group's new rows → [B, H, T, D] float32."""
        ...


@dataclass(frozen=True)
class Start:
    """The start of a stream, nothing kept: rows of zero_key and zero_value [H, D] where the source attends zeros."""

    zero_key: torch.Tensor
    zero_value: torch.Tensor

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, group: Group, tables: Tables, visibility: Visibility
    ) -> torch.Tensor:
        shape = (group.batch, -1, visibility.reach, -1)
        keys = torch.cat((self.zero_key[:, None].expand(shape), key.to(self.zero_key.dtype)), dim=2)
        values = torch.cat((self.zero_value[:, None].expand(shape), value.to(self.zero_value.dtype)), dim=2)
        return reference.attend(query, keys, values, group.starts, tables, visibility)


@dataclass(frozen=True)
class Bidirectional:
    """Nothing stands before the new rows: they are whole sequences, and all of a sequence see each other. dtype: of keys and values."""

    dtype: torch.dtype

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, group: Group, tables: Tables, visibility: Visibility
    ) -> torch.Tensor:
        return reference.attend_bidirectional(query, key.to(self.dtype), value.to(self.dtype))


def _existing(visibility: Visibility, tables: Tables, group: Group) -> Visibility:
    """The same, no farther than the group's streams go back: a model without a window has room for all its positions and uses a few."""
    if (
        visibility.attended_zeros
        or visibility.segment
        or visibility.first_distance
        or tables.distances is not None
        or tables.spans is not None
    ):
        return visibility
    reach = min(visibility.reach, group.end)
    return replace(visibility, reach=reach, window=min(visibility.window, reach))


class Rings:
    """A ring of W keys and values per slot and head, [slots, H, W, D]: slot p mod W of a ring holds position p."""

    def __init__(self, start: Start, reach: int) -> None:
        self._start = start
        heads, head_dim = start.zero_key.shape
        self.keys = start.zero_key.new_empty((0, heads, reach, head_dim))
        self.values = torch.empty_like(self.keys)

    def grow(self, slots: int) -> None:
        """Make room for at least `slots` slots, doubling so that opening many costs few copies."""
        have = len(self.keys)
        if slots > have:
            more = self.keys.new_zeros((max(slots, 2 * have) - have, *self.keys.shape[1:]))
            self.keys = torch.cat((self.keys, more))
            self.values = torch.cat((self.values, more))

    def restart(self, slot: int) -> None:
        self.keys[slot] = self._start.zero_key[:, None]
        self.values[slot] = self._start.zero_value[:, None]

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, group: Group, tables: Tables, visibility: Visibility
    ) -> torch.Tensor:
        if group.length == 1:
            return self._attend_one(query[:, :, 0], key, value, group, tables, visibility)[:, :, None]
        size, near = visibility.reach, _existing(visibility, tables, group)
        order = (group.starts[:, None] - near.reach + torch.arange(near.reach, device=key.device)) % size  # [B, W]: oldest first
        slots = group.slots[:, None]
        keys = torch.cat((self.keys.transpose(1, 2)[slots, order].transpose(1, 2), key.to(self.keys.dtype)), dim=2)
        values = torch.cat((self.values.transpose(1, 2)[slots, order].transpose(1, 2), value.to(self.values.dtype)), dim=2)
        self._write(key, value, group, visibility)
        return reference.attend(query, keys, values, group.starts, tables, near)

    def _attend_one(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, group: Group, tables: Tables, visibility: Visibility
    ) -> torch.Tensor:
        """query [B, H, D]; a row that does not see itself attends before its own key takes the place of the oldest."""
        if visibility.first_distance == 0:
            self._write(key, value, group, visibility)
        where = group.slots if group.adjacent is None else group.adjacent  # a range is a view, not a copy
        near = _existing(visibility, tables, group)
        keys, values = self.keys[where][:, :, : near.reach], self.values[where][:, :, : near.reach]
        out = reference.attend_cached(query, keys, values, group.starts, tables, near)
        if visibility.first_distance == 1:
            self._write(key, value, group, visibility)
        return out

    def _write(self, key: torch.Tensor, value: torch.Tensor, group: Group, visibility: Visibility) -> None:
        """Put the last W of the new rows [B, H, T, D] where they belong."""
        last = min(group.length, visibility.reach)
        steps = torch.arange(group.length - last, group.length, device=key.device)
        order = (group.starts[:, None] + steps) % visibility.reach  # [B, last]
        slots = group.slots[:, None]
        self.keys.transpose(1, 2)[slots, order] = key[:, :, -last:].transpose(1, 2).to(self.keys.dtype)
        self.values.transpose(1, 2)[slots, order] = value[:, :, -last:].transpose(1, 2).to(self.values.dtype)
