"""Which heads a Hugging Face checkpoint holds: what its configuration says in any of five ways, and what its tensors show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.formats.base import Settings
from engine.formats.hugging_face.keys import HEAD_SIZES

COUNTS = ("num_attention_heads_per_layer", "layer_head_num")  # a list of numbers of heads
PER_LAYER = ("num_attention_heads", "n_heads", "n_head", "intermediate_size", "hidden_dim", "n_inner")


@dataclass(frozen=True)
class Heads:
    """source_heads: of an unpruned layer; kept: head numbers per layer; widths: of the feed-forwards the configuration names."""

    source_heads: int
    head_dim: int
    kept: tuple[tuple[int, ...], ...]
    widths: dict[int, int]


def read_heads(settings: Settings, heads_name: str, hidden: int, rows: Sequence[tuple[str, int]], notes: list[str]) -> Heads:
    """rows: of each layer, the name of a tensor with heads · head_dim rows, and how many it has.

    v4 `pruned_heads` {layer: [removed]} and `kept_heads` name heads by the numbers of the unpruned model; v5 `per_layer_config` and lists
    of counts only say how many; without any of them the tensors do. Two that differ are a problem that names both.
    """
    told_dim = _head_size(settings)
    source_heads, head_dim = _sizes(settings, heads_name, hidden, rows, told_dim)
    layers = len(rows)
    numbers = {
        "pruned_heads": _pruned(settings, layers, source_heads),
        "kept_heads": _kept(settings, layers, source_heads),
    }
    per_layer = _per_layer(settings, layers, head_dim)
    counts = {name: _counts(settings, name, layers) for name in COUNTS}
    counts["per_layer_config"] = _per_layer_counts(per_layer, layers, source_heads)
    if settings.has(heads_name) and not any([*numbers.values(), *counts.values()]):
        if told_dim is None:
            _require_one_reading(settings, source_heads, hidden, rows)
        elif not settings.has("head_dim") and source_heads * told_dim != hidden and all(size == hidden for _, size in rows):
            name = next(name for name in HEAD_SIZES if settings.has(name))  # a second name, stale where no head was cut
            expected = f"{hidden} / {source_heads} heads, for every layer has {hidden} rows; head_dim in its place is taken as it stands"
            settings.problem(f"config {name}", expected, str(told_dim))
    kept = []
    for layer, (tensor, size) in enumerate(rows):
        said = {f"config {name}": len(lists[layer]) for name, lists in numbers.items() if lists}
        said |= {f"config {name}": row[layer] for name, row in counts.items() if row}
        if size % head_dim:
            settings.problem(tensor, f"a multiple of {head_dim} rows, the size of a head", str(size))
            kept.append(tuple(range(source_heads)))
            continue
        heads = size // head_dim
        for name, count in said.items():
            if count != heads:
                settings.problem(f"{name}: layer {layer}", f"{heads} heads, the {size} rows of {tensor} / {head_dim}", f"{count} heads")
        if heads > source_heads:
            settings.problem(heads_name, f"at least {heads}, the {size} rows of {tensor} / {head_dim}", str(source_heads))
        named = [lists[layer] for lists in numbers.values() if lists]
        if len(named) == 2 and named[0] != named[1]:
            settings.problem(f"config pruned_heads: layer {layer}", f"heads {list(named[1])} left, as kept_heads says", str(list(named[0])))
        kept.append(named[0] if named and len(named[0]) == heads else tuple(range(min(heads, source_heads))))
    if not any(numbers.values()) and any(len(heads) < source_heads for heads in kept):
        notes.append("nothing says which heads of the source are left: each layer's are numbered from 0 in the order of the file")
    if not any(kept):
        settings.problem("heads", "at least one head in the model", "none: all are pruned")
    return Heads(source_heads, head_dim, tuple(kept), _widths(per_layer))


def _head_size(settings: Settings) -> int | None:
    """The size of a head, by any of its names; a problem where two of them differ."""
    told = {name: settings.integer(name, least=1) for name in HEAD_SIZES if settings.has(name)}
    first = next(iter(told), None)
    for name, size in told.items():
        if first is not None and size != told[first]:
            settings.problem(f"config {name}", f"{told[first]}, as {first} says", str(size))
    return None if first is None else told[first]


def _sizes(settings: Settings, heads_name: str, hidden: int, rows: Sequence[tuple[str, int]], head_dim: int | None) -> tuple[int, int]:
    """Heads of an unpruned layer and their size; where only one is told, or only the heads of each layer, they make up the hidden size."""
    if settings.has(heads_name):
        source_heads = settings.integer(heads_name, least=1)
        if head_dim is None and hidden % source_heads:
            settings.problem(heads_name, f"a divisor of the hidden size {hidden}", str(source_heads))
        return source_heads, head_dim or max(hidden // source_heads, 1)
    counts = next((found for name in COUNTS if (found := _counts(settings, name, len(rows)))), None) or _named(settings, len(rows))
    shown = {size // counts[layer] for layer, (_, size) in enumerate(rows) if counts.get(layer) and size % counts[layer] == 0}
    if head_dim is None and len(shown) != 1:
        return settings.integer(heads_name, least=1), 1  # says that nothing gives it
    head_dim = head_dim or max(shown.pop(), 1)
    return max(hidden // head_dim, 1), head_dim


def _require_one_reading(settings: Settings, source_heads: int, hidden: int, rows: Sequence[tuple[str, int]]) -> None:
    """A problem where every layer has the same rows, fewer than the hidden size: some of the heads, or all of them and smaller."""
    tensor, size = rows[0] if rows else ("", hidden)
    if size and size < hidden and size % source_heads == 0 and all(other == size for _, other in rows):
        usual = max(hidden // source_heads, 1)
        all_left = f"{source_heads} heads of {size // source_heads}"
        found = all_left if size % usual else f"{size // usual} of {source_heads} heads of {usual}, or {all_left}"
        expected = f"the size of a head: {size} rows of {tensor} in every layer may be {found}"
        settings.problem("option head_dim", expected, "nothing: neither the file nor its configuration gives it")


def _pruned(settings: Settings, layers: int, source_heads: int) -> list[tuple[int, ...]]:
    """Head numbers left per layer; empty where the configuration has none."""
    given = settings.value("pruned_heads")
    if not given:
        return []
    removed = _by_layer(settings, "pruned_heads", given, layers)
    lists = [_numbers(settings, f"config pruned_heads: layer {layer}", removed.get(layer, []), source_heads) for layer in range(layers)]
    return [tuple(head for head in range(source_heads) if head not in gone) for gone in lists]


def _kept(settings: Settings, layers: int, source_heads: int) -> list[tuple[int, ...]]:
    given = settings.value("kept_heads")
    if not given:
        return []
    if not isinstance(given, list) or len(given) != layers:
        settings.problem("config kept_heads", f"a list of heads for each of {layers} layers", repr(given)[:60])
        return []
    return [tuple(sorted(_numbers(settings, f"config kept_heads: layer {layer}", row, source_heads))) for layer, row in enumerate(given)]


def _per_layer(settings: Settings, layers: int, head_dim: int) -> dict[int, Mapping[str, Any]]:
    given = settings.value("per_layer_config")
    if not given:
        return {}
    entries: dict[int, Mapping[str, Any]] = {}
    for layer, entry in _by_layer(settings, "per_layer_config", given, layers).items():
        where = f"config per_layer_config: layer {layer}"
        if not isinstance(entry, Mapping):
            settings.problem(where, "an object of settings", repr(entry)[:60])
            continue
        for name, value in entry.items():
            if (name == "skip" and not value) or (name == "head_dim" and value == head_dim):
                continue
            if name == "skip":
                settings.problem(
                    f"{where}: skip", "nothing: a layer whose attention is left out has num_attention_heads 0", repr(value)[:60]
                )
            elif name not in PER_LAYER or not _whole(value):
                settings.problem(f"{where}: {name}", f"a number for one of {', '.join(PER_LAYER)}", repr(value)[:60])
        entries[layer] = entry
    return entries


def _named(settings: Settings, layers: int) -> dict[int, int]:
    """Heads by layer of a per_layer_config, before the size of a head is known; what is wrong in it is told by _per_layer."""
    given = settings.value("per_layer_config")
    entries = given.items() if isinstance(given, Mapping) else ()
    rows = {_layer_number(key): row for key, row in entries if isinstance(row, Mapping)}
    return {layer: rows[layer][name] for layer in range(layers) if layer in rows for name in PER_LAYER[:3] if _whole(rows[layer].get(name))}


def _per_layer_counts(entries: Mapping[int, Mapping[str, Any]], layers: int, source_heads: int) -> dict[int, int]:
    """Heads of every layer, those not named having all; empty where no layer names heads."""
    found = {layer: entry[name] for layer, entry in entries.items() for name in PER_LAYER[:3] if _whole(entry.get(name))}
    return {layer: found.get(layer, source_heads) for layer in range(layers)} if found else {}


def _widths(entries: Mapping[int, Mapping[str, Any]]) -> dict[int, int]:
    return {layer: entry[name] for layer, entry in entries.items() for name in PER_LAYER[3:] if _whole(entry.get(name))}


def _counts(settings: Settings, name: str, layers: int) -> dict[int, int]:
    given = settings.value(name)
    if given is None:
        return {}
    if not isinstance(given, list) or len(given) != layers or not all(_whole(count) for count in given):
        settings.problem(f"config {name}", f"a number of heads for each of {layers} layers", repr(given)[:60])
        return {}
    return dict(enumerate(given))


def _by_layer(settings: Settings, name: str, given: Any, layers: int) -> dict[int, Any]:
    """Entries by layer number; JSON has text for keys, v5 with zeros before."""
    if not isinstance(given, Mapping):
        settings.problem(f"config {name}", "an object by layer", repr(given)[:60])
        return {}
    entries: dict[int, Any] = {}
    for key, value in given.items():
        layer = _layer_number(key)
        if not 0 <= layer < layers or layer in entries:
            settings.problem(f"config {name}: layer {key!r}", f"each layer from 0 to {layers - 1} at most once", repr(value)[:60])
        else:
            entries[layer] = value
    return entries


def _layer_number(key: Any) -> int:
    """-1 for what is none."""
    return int(key) if isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) < 10 else -1


def _numbers(settings: Settings, where: str, given: Any, source_heads: int) -> list[int]:
    if not isinstance(given, list):
        settings.problem(where, "a list of head numbers", repr(given)[:60])
        return []
    for head in given:
        if not _whole(head) or head >= source_heads:
            settings.problem(where, f"heads from 0 to {source_heads - 1}", repr(head)[:60])
    if len({repr(head) for head in given}) != len(given):
        settings.problem(where, "each head once", str(given)[:60])
    return [head for head in given if _whole(head) and head < source_heads]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
