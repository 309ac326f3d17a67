"""Surgery against a definition that copies head by head."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from engine.checkpoint import Checkpoint, validate
from engine.checkpoint.surgery import prune
from engine.errors import InputError, Unsupported
from engine.spec import AttentionSpec
from tests.support.store_cases import DTYPES, assert_same, random_checkpoint


def by_head(a: AttentionSpec, name: str, array: np.ndarray, head: int) -> np.ndarray:
    """The part of a tensor that belongs to one head, found by loops over single rows or columns."""
    position = list(a.kept).index(head)
    rows = [position * a.head_dim + i for i in range(a.head_dim)]
    if name == "output":
        return np.stack([array[:, row] for row in rows], axis=1)  # [hidden, head_dim]
    if name.removesuffix("_bias") in ("query", "key", "value", "relative"):
        return np.stack([array[row] for row in rows])
    return array[position]


def some_kept(checkpoint: Checkpoint, seed: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [sorted(rng.permutation(a.attention.kept)[: rng.integers(a.attention.heads + 1)].tolist()) for a in checkpoint.spec.layers]


@pytest.mark.parametrize("seed", range(40))
def test_each_kept_head_keeps_its_own_numbers(seed: int) -> None:
    before = random_checkpoint(seed)
    kept = some_kept(before, seed)
    after = prune(before, kept)
    after.spec.check()
    validate(after.spec, after.weights)
    for name, array in after.weights.items():
        parts = name.split(".")
        if len(parts) < 4 or parts[2] != "attention" or parts[3] == "output_bias":
            assert array.tobytes() == before.weights[name].tobytes(), name
            continue
        assert array.dtype == before.weights[name].dtype
        old, new = (c.spec.layers[int(parts[1])].attention for c in (before, after))
        for head in new.kept:
            assert by_head(new, parts[3], array, head).tobytes() == by_head(old, parts[3], before.weights[name], head).tobytes()
    for layer, heads in zip(after.spec.layers, kept, strict=True):
        assert list(layer.attention.kept) == heads
    assert after.provenance == {**before.provenance, "kept": kept}


@pytest.mark.parametrize("seed", range(12))
def test_pruning_twice_is_pruning_once(seed: int) -> None:
    checkpoint = random_checkpoint(seed)
    first = some_kept(checkpoint, seed)
    second = [heads[::2] for heads in first]
    assert_same(prune(prune(checkpoint, first), second), prune(checkpoint, second))


def test_spans_follow_their_heads() -> None:
    checkpoint = next(c for c in map(lambda s: random_checkpoint(s, "fair"), range(50)) if c.spec.layers[0].attention.spans)
    a = checkpoint.spec.layers[0].attention
    kept = [list(layer.attention.kept) for layer in checkpoint.spec.layers]
    kept[0] = kept[0][1:]
    assert a.spans is not None
    assert prune(checkpoint, kept).spec.layers[0].attention.spans == a.spans[1:]


def test_all_heads_of_a_layer_may_go() -> None:
    checkpoint = random_checkpoint(9, "aiha")
    after = prune(checkpoint, [[] for _ in checkpoint.spec.layers])
    left = {name.split(".", 2)[2] for name in after.weights if ".attention." in name}
    assert left <= {"attention.output_bias"}
    validate(after.spec, after.weights)


def test_keeping_everything_changes_nothing() -> None:
    checkpoint = random_checkpoint(5, "txl")
    after = prune(checkpoint, [layer.attention.kept for layer in checkpoint.spec.layers])
    assert after.spec == checkpoint.spec
    assert_same(replace(after, provenance=checkpoint.provenance), checkpoint)
    assert all(np.shares_memory(after.weights[name], checkpoint.weights[name]) for name in checkpoint.weights)  # no copies


def unscaled(dtype: np.dtype) -> Checkpoint:
    checkpoint = next(c for c in map(lambda s: random_checkpoint(s, "aiha", dtype), range(99)) if c.spec.layers[0].attention.heads == 3)
    layers = tuple(replace(layer, attention=replace(layer.attention, scaled=False)) for layer in checkpoint.spec.layers)
    spec = replace(checkpoint.spec, layers=layers)
    return replace(checkpoint, spec=spec, weights={name: checkpoint.weights[name] for name in spec.tensors()})


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_scales_are_stored_by_head_and_compose(dtype: np.dtype) -> None:
    checkpoint = unscaled(dtype)
    kept = [layer.attention.kept for layer in checkpoint.spec.layers]
    ones = [[1.0] * len(heads) for heads in kept]
    assert prune(checkpoint, kept, ones).spec == checkpoint.spec  # nothing to store
    name = "layers.0.attention.head_scale"
    backwards = [heads[::-1] for heads in kept]  # the order given is the order of the scales
    once = prune(checkpoint, backwards, [[3.0, -2.0, 0.5], *ones[1:]])
    assert once.weights[name].dtype == np.float32
    assert once.weights[name].tolist() == [0.5, -2.0, 3.0]
    assert [layer.attention.scaled for layer in once.spec.layers] == [True] + [False] * (len(kept) - 1)
    twice = prune(once, [kept[0][1:], *kept[1:]], [[4.0, 0.25], *ones[1:]])
    assert twice.weights[name].tolist() == [-8.0, 0.75]
    thrice = prune(twice, [kept[0][2:], *kept[1:]])
    assert thrice.weights[name].tolist() == [0.75]
    for pruned in (once, twice, thrice):
        validate(pruned.spec, pruned.weights)


def test_a_scale_of_one_keeps_the_stored_type() -> None:
    checkpoint = next(
        c
        for c in map(lambda s: random_checkpoint(s, None, np.dtype(np.float64)), range(99))
        if c.spec.layers[0].attention.scaled and c.spec.layers[0].attention.heads
    )
    kept = [layer.attention.kept for layer in checkpoint.spec.layers]
    after = prune(checkpoint, kept, [[1] * len(heads) for heads in kept])
    assert_same(replace(after, provenance=checkpoint.provenance), checkpoint)


def test_everything_wrong_with_the_heads_is_said_together() -> None:
    checkpoint = next(c for c in map(random_checkpoint, range(99)) if len(c.spec.layers) == 3 and c.spec.layers[0].attention.heads == 3)
    a = checkpoint.spec.layers[0].attention
    gone = next(head for head in range(8) if head not in a.kept)
    with pytest.raises(InputError) as caught:
        prune(checkpoint, [[gone, a.kept[0], a.kept[0], True], [99], [-1, 1.5]], [[1, 1, 1, float("nan")], [], [1, 1e39]])  # type: ignore[list-item]
    assert [(problem.where, problem.found) for problem in caught.value.problems] == [  # type: ignore[union-attr]
        ("layers.0", str(gone)),
        ("layers.0", f"{a.kept[0]} twice"),
        ("layers.0", "True"),
        ("layers.0", "nan"),
        ("layers.1", "99"),
        ("layers.1", "0"),
        ("layers.2", "-1"),
        ("layers.2", "1.5"),
        ("layers.2", "1e+39"),
    ]
    for kept, scales in (([[]], None), ([[]] * 3, [[]])):
        with pytest.raises(InputError, match="one list for each of 3 layers"):
            prune(checkpoint, kept, scales)


def test_grouped_key_value_heads_are_refused() -> None:
    checkpoint = unscaled(DTYPES[0])
    first, *rest = checkpoint.spec.layers
    grouped = replace(first, attention=replace(first.attention, kv_of=(0, 0, 1)))
    with pytest.raises(Unsupported, match=r"layers\.0\.attention\.kv_of"):
        prune(replace(checkpoint, spec=replace(checkpoint.spec, layers=(grouped, *rest))), [[]] * (1 + len(rest)))


def test_the_source_is_not_written_to() -> None:
    checkpoint = random_checkpoint(3)
    before = {name: array.tobytes() for name, array in checkpoint.weights.items()}
    kept = [layer.attention.kept[1:] for layer in checkpoint.spec.layers]
    prune(checkpoint, kept, [[0.5] * len(heads) for heads in kept])
    assert {name: array.tobytes() for name, array in checkpoint.weights.items()} == before
