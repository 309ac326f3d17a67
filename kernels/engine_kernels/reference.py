"""The operations of ops.py in plain, differentiable PyTorch: the `torch` backend, and what every fast kernel must agree with.

No score matrix over all pairs of tokens is ever formed: queries go in blocks, each against the keys its rows can see, and the band
of visible keys is cut out of a block's scores by a view: column t of a row is always the key at distance first_distance + reach - 1 - t.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange

from engine_kernels.ops import AttentionTables, Visibility

QUERY_ROWS = 64  # rows of a block; cost.py counts executed work with it

Tables = AttentionTables[torch.Tensor]
Activation = Callable[[torch.Tensor], torch.Tensor]
ACTIVATIONS: dict[str, Activation] = {
    "relu": torch.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
    "tanh": torch.tanh,
}


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x [.., in] · weight [out, in]ᵀ + bias [out], in weight's dtype; float32."""
    return F.linear(x.to(weight.dtype), weight, bias).float()


def layer_norm(x: torch.Tensor, gain: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """Over the last dimension, in float32."""
    return F.layer_norm(x.float(), gain.shape, gain.float(), bias.float(), eps)


def feed_forward(
    x: torch.Tensor,
    up: torch.Tensor,
    up_bias: torch.Tensor | None,
    down: torch.Tensor,
    down_bias: torch.Tensor | None,
    activation: Activation = torch.relu,
) -> torch.Tensor:
    """down · activation(up · x + up_bias) + down_bias; float32."""
    return linear(activation(linear(x, up, up_bias)), down, down_bias)


def log_softmax(logits: torch.Tensor) -> torch.Tensor:
    """Over the last dimension, in float32."""
    return torch.log_softmax(logits.float(), dim=-1)


def attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor, tables: Tables, visibility: Visibility
) -> torch.Tensor:
    """Attention of T new rows; query [B, H, T, D], keys and values [B, H, W + T, D], positions [B] of row 0; [B, H, T, D] float32."""
    rows = query.shape[2]
    farthest_first = _flipped(tables.distances)  # [H or 1, W, D]: column t of the band
    blocks = []
    for start in range(0, rows, QUERY_ROWS):
        block = query[:, :, start : start + QUERY_ROWS]  # [B, H, R, D]
        first = start + 1 - visibility.first_distance
        band = slice(first, first + block.shape[2] + visibility.reach - 1)  # W + R - 1 keys
        visible = _visible_rows(positions + start, block.shape[2], visibility)
        blocks.append(_attend_block(block, keys[:, :, band], values[:, :, band], farthest_first, visible, tables, visibility))
    return torch.cat(blocks, dim=2)


def attend_cached(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor, tables: Tables, visibility: Visibility
) -> torch.Tensor:
    """Attention of one row per sequence, query [B, H, D], against its ring, keys and values [B, H, W, D]; [B, H, D] float32."""
    slots = torch.arange(visibility.reach, device=query.device)
    nearness = (positions[:, None] - visibility.first_distance - slots) % visibility.reach  # [B, W]: distance - first_distance of each slot
    scores = _product("bhd,bhwd->bhw", _biased(query, tables.content_bias), keys)
    if tables.distances is not None:
        by_distance = _product("bhd,hwd->bhw", _biased(query, tables.position_bias), tables.distances)
        scores = scores + by_distance.gather(2, nearness[:, None, :].expand_as(by_distance))
    scores = scores * query.shape[-1] ** -0.5
    visible = _visible(positions[:, None], nearness, visibility)
    if visible is not None:
        scores = scores.masked_fill(~visible[:, None, :], -torch.inf)
    persistent = None if tables.persistent_keys is None else _product("bhd,hnd->bhn", query, tables.persistent_keys)
    weights, persistent_weights = _softmax(scores, persistent, _ramp(nearness[:, None, :], tables, visibility))
    out = _product("bhw,bhwd->bhd", weights, values)
    if persistent_weights is not None and tables.persistent_values is not None:
        out = out + _product("bhn,hnd->bhd", persistent_weights, tables.persistent_values)
    return out


def attend_bidirectional(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Every row of a sequence sees every row of it; query, keys, values [B, H, T, D]; [B, H, T, D] float32."""
    blocks = []
    for start in range(0, query.shape[2], QUERY_ROWS):
        scores = _product("bhrd,bhkd->bhrk", query[:, :, start : start + QUERY_ROWS], keys) * query.shape[-1] ** -0.5
        blocks.append(_product("bhrk,bhkd->bhrd", torch.softmax(scores, dim=-1), values))
    return torch.cat(blocks, dim=2)


def _attend_block(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    farthest_first: torch.Tensor | None,
    visible: torch.Tensor | None,
    tables: Tables,
    visibility: Visibility,
) -> torch.Tensor:
    """R rows [B, H, R, D] against the W + R - 1 keys [B, H, W + R - 1, D] that any of them sees."""
    scores = _band(_product("bhrd,bhkd->bhrk", _biased(query, tables.content_bias), keys), visibility.reach)  # [B, H, R, W]
    if farthest_first is not None:
        scores = scores + _product("bhrd,hwd->bhrw", _biased(query, tables.position_bias), farthest_first)
    scores = scores * query.shape[-1] ** -0.5
    if visible is not None:
        scores = scores.masked_fill(~visible[:, None], -torch.inf)
    persistent = None if tables.persistent_keys is None else _product("bhrd,hnd->bhrn", query, tables.persistent_keys)
    nearness = torch.arange(visibility.reach - 1, -1, -1, device=query.device)
    weights, persistent_weights = _softmax(scores, persistent, _ramp(nearness, tables, visibility, rows=True))
    out = _product("bhrk,bhkd->bhrd", _unband(weights), values)
    if persistent_weights is not None and tables.persistent_values is not None:
        out = out + _product("bhrn,hnd->bhrd", persistent_weights, tables.persistent_values)
    return out


def _product(equation: str, x: torch.Tensor, constant: torch.Tensor) -> torch.Tensor:
    """An einsum in the dtype of its second operand; float32."""
    return torch.einsum(equation, x.to(constant.dtype), constant).float()


def _biased(query: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """query [B, H, (R,) D] + bias [H, D]."""
    if bias is None:
        return query
    return query + (bias[:, None] if query.ndim == 4 else bias).float()


def _band(scores: torch.Tensor, reach: int) -> torch.Tensor:
    """[.., R, W + R - 1] → [.., R, W]: row r keeps columns r .. r + W - 1, by reading rows one element longer than they are."""
    rows = scores.shape[-2]
    one_line = F.pad(rearrange(scores, "... row key -> ... (row key)"), (0, rows))
    longer: torch.Tensor = rearrange(one_line, "... (row key) -> ... row key", row=rows)  # [.., R, W + R]
    return longer[..., :reach]


def _unband(weights: torch.Tensor) -> torch.Tensor:
    """[.., R, W] → [.., R, W + R - 1]: the inverse of _band, zero outside the band."""
    rows, reach = weights.shape[-2:]
    width = reach + rows - 1
    one_line = rearrange(F.pad(weights, (0, rows)), "... row key -> ... (row key)")[..., : rows * width]
    shorter: torch.Tensor = rearrange(one_line, "... (row key) -> ... row key", row=rows)
    return shorter


def _softmax(scores: torch.Tensor, persistent: torch.Tensor | None, ramp: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One softmax over keys and persistent vectors, then the span ramp and its renormalisation (arXiv 1905.07799)."""
    keys = scores.shape[-1]
    weights = torch.softmax(scores if persistent is None else torch.cat((scores, persistent), dim=-1), dim=-1)
    context, constant = weights[..., :keys], None if persistent is None else weights[..., keys:]
    if ramp is None:
        return context, constant
    context = context * ramp
    total = context.sum(-1, keepdim=True) + (0.0 if constant is None else constant.sum(-1, keepdim=True)) + 1e-8
    return context / total, None if constant is None else constant / total


def _ramp(nearness: torch.Tensor, tables: Tables, visibility: Visibility, *, rows: bool = False) -> torch.Tensor | None:
    """clamp((1 - distance + span) / ramp + 1, 0, 1): [B, H, W] for nearness [B, 1, W], [H, 1, W] for nearness [W] and rows."""
    if tables.spans is None:
        return None
    spans = tables.spans[:, None, None] if rows else tables.spans[:, None]
    return ((1.0 - (nearness + visibility.first_distance) + spans) / tables.span_ramp + 1.0).clamp(0.0, 1.0)


def _visible_rows(positions: torch.Tensor, rows: int, visibility: Visibility) -> torch.Tensor | None:
    """[B, R, W] for R rows from positions [B], columns farthest first; None where every key of the reach is visible."""
    steps = torch.arange(rows, device=positions.device)
    nearness = torch.arange(visibility.reach - 1, -1, -1, device=positions.device)
    return _visible((positions[:, None] + steps)[..., None], nearness, visibility)


def _visible(position: torch.Tensor, nearness: torch.Tensor, visibility: Visibility) -> torch.Tensor | None:
    """Whether a row at `position` sees the key at distance first_distance + nearness, broadcast; None where it always does."""
    visible = None
    if visibility.segment:
        visible = nearness < visibility.window + position % visibility.segment
    if not visibility.attended_zeros:
        exists = nearness + visibility.first_distance <= position
        visible = exists if visible is None else visible & exists
    return visible


def _flipped(distances: torch.Tensor | None) -> torch.Tensor | None:
    return None if distances is None else distances.flip(1)
