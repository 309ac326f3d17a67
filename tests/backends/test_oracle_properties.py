"""The engine against the independent oracle over random models, run in every way a model is used; and planted bugs that must show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np
import pytest

from engine.checkpoint import Checkpoint
from engine.spec import ModelSpec, Vocabulary
from engine_kernels.testing import EPS, difference, tolerance
from tests.oracle.model import Answer, run
from tests.support import engine_side
from tests.support.random_specs import DIALECTS, LENGTHS, WINDOWS, random_checkpoint, random_length

GROUP = 20
SEEDS = 240


@dataclass(frozen=True)
class Case:
    """A random model, a sequence, the oracle's answer and the differences from it that float32 allows."""

    checkpoint: Checkpoint
    ids: np.ndarray
    exact: Answer
    allowed: float  # of log-probabilities
    allowed_streams: float

    @staticmethod
    def draw(seed: int) -> Case:
        return Case.of(random_checkpoint(seed))

    @staticmethod
    def of(checkpoint: Checkpoint, dtype: str = "float32") -> Case:
        seed = checkpoint.provenance["seed"]
        ids = np.random.default_rng([seed, 2]).integers(0, checkpoint.spec.vocab, random_length(checkpoint))
        spec = checkpoint.spec.to_dict()
        exact = run(spec, checkpoint.weights, ids)
        # p of the tolerance rule: the loops in float32 on weights moved by a few eps, so that a row where rounding weighs more than
        # elsewhere always widens the limit, not only when the loops happen to round badly there. 4 in float32: there sums round as well.
        plain = run(spec, moved(checkpoint.weights, seed, (4 if dtype == "float32" else 1) * EPS[dtype]), ids, dtype="float32")
        allowed = tolerance(plain.log_probs, exact.log_probs, dtype)
        return Case(checkpoint, ids, exact, allowed, tolerance(plain.streams, exact.streams, dtype))

    def check(self, log_probs: np.ndarray, how: str) -> None:
        found = difference(log_probs, self.exact.log_probs[: len(log_probs)])
        assert found <= self.allowed, (
            f"{how}, {self.checkpoint.provenance}, {len(self.ids)} tokens: {found:.3e}, allowed {self.allowed:.3e}"
        )


def moved(weights: Mapping[str, np.ndarray], seed: int, relative: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([seed, 1])
    return {name: w.astype(np.float32) * (1 + rng.choice((-relative, relative), w.shape)) for name, w in weights.items()}


@pytest.mark.parametrize("first", range(0, SEEDS, GROUP))
def test_engine_keeps_to_the_oracle(first: int) -> None:
    """Whole, token by token, ragged chunks in a batch, targets only, next token only, and the residual stream of every layer."""
    for seed in range(first, first + GROUP):
        case = Case.draw(seed)
        ids, rng = case.ids, np.random.default_rng([seed, 3])
        runner = engine_side.torch_runner(case.checkpoint)
        streams: dict[int, np.ndarray] = {}
        case.check(engine_side.whole(runner, ids, tap=lambda layer, rows, to=streams: to.__setitem__(layer, rows.copy())), "whole")
        case.check(engine_side.one_by_one(runner, ids), "token by token")
        prefix = ids[: int(rng.integers(1, len(ids) + 1))]  # its rows are the same rows: no token sees a later one
        for result, sequence in zip(engine_side.ragged(runner, [ids, prefix, ids], rng), (ids, prefix, ids), strict=True):
            assert len(result) == len(sequence)
            case.check(result, "ragged chunks")
        assert sorted(streams) == list(range(-1, len(case.checkpoint.spec.layers)))
        for layer, rows in streams.items():
            assert difference(rows, case.exact.streams[layer + 1]) <= case.allowed_streams, f"seed {seed}, stream after layer {layer}"
        _check_targets(case, runner, rng)
        last = difference(engine_side.from_next(runner, ids), case.exact.log_probs[-1])
        assert last <= case.allowed, f"next, seed {seed}: {last:.3e}, allowed {case.allowed:.3e}"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_keeps_to_the_oracle_on_the_same_rounded_weights(dtype: str) -> None:
    for seed in range(12):
        drawn = random_checkpoint(seed)
        kind = np.dtype(dtype if dtype == "float16" else ml_dtypes.bfloat16)
        case = Case.of(replace(drawn, weights={name: w.astype(kind) for name, w in drawn.weights.items()}), dtype)
        runner = engine_side.torch_runner(case.checkpoint, dtype)
        case.check(engine_side.whole(runner, case.ids), dtype)
        case.check(engine_side.one_by_one(runner, case.ids), f"{dtype}, token by token")


def _check_targets(case: Case, runner: engine_side.Runner, rng: np.random.Generator) -> None:
    """Some rows have no target: NaN there, the oracle's number elsewhere."""
    targets = rng.integers(-1, case.checkpoint.spec.vocab, len(case.ids))
    slot = runner.open()
    nll = engine_side.step(runner, [case.ids], [slot], [0], "target_nll", targets).nll
    runner.close(slot)
    wanted = np.flatnonzero(targets >= 0)
    assert np.array_equal(np.isnan(nll), targets < 0)
    found = difference(nll[wanted], -case.exact.log_probs[wanted, targets[wanted]])
    assert found <= case.allowed, f"target_nll, {case.checkpoint.provenance}: {found:.3e}, allowed {case.allowed:.3e}"


def test_every_variant_is_drawn() -> None:
    """A random test proves nothing about what it never draws."""
    drawn: Counter[tuple[object, ...]] = Counter()
    for seed in range(SEEDS):
        checkpoint = random_checkpoint(seed)
        drawn.update(set(_features(checkpoint.spec, checkpoint)) | {("length", random_length(checkpoint))})
    wanted: list[tuple[object, ...]] = [
        ("kind", dialect, norm_first, start)
        for dialect in DIALECTS
        for norm_first in (False, True)
        for start in ("attended_zeros", "empty")
    ]
    wanted += [("heads", heads) for heads in range(9)] + [("persistent", n) for n in (0, 1, 17)]
    wanted += [("window", window) for window in WINDOWS] + [("length", length) for length in LENGTHS]
    wanted += [("div_value", div_value) for div_value in (1, 2, 4)] + [("tails", tails) for tails in range(4)]
    wanted += [("clusters", order, reads) for order in ("ascending", "descending") for reads in ("hidden", "projected")]
    wanted += [("rows", a, "projection", b) for a in ("tied", "own") for b in ("tied", "own", "none")]
    wanted += [("segments", dialect, segments) for dialect in DIALECTS for segments in (False, True)]
    wanted += [("spans", dialect, spans) for dialect in DIALECTS for spans in (False, True)]
    wanted += [("sees_self", dialect, sees_self) for dialect in DIALECTS for sees_self in (False, True)]
    wanted += [("feed_forward", norm_first, there) for norm_first in (False, True) for there in (False, True)]
    wanted += [
        (flag, value) for flag in ("bias", "output_bias", "scaled", "final_norm", "clamped", "norm_offset") for value in (False, True)
    ]
    wanted += [(name,) for name in ("kept is not a prefix", "mixed heads", "mixed windows", "odd heads", "width is not hidden")]
    missing = [feature for feature in wanted if drawn[feature] < 2]
    assert not missing, missing


def _features(spec: ModelSpec, checkpoint: Checkpoint) -> list[tuple[object, ...]]:
    dialect, head = checkpoint.provenance["dialect"], spec.head
    assert isinstance(head, Vocabulary)
    found: list[tuple[object, ...]] = [("div_value", checkpoint.provenance["div_value"]), ("tails", len(head.clusters) - 1)]
    found.append(("final_norm", spec.final_norm))
    if len(head.clusters) > 2:  # one tail stands in the same place in either order
        found.append(("clusters", head.order, head.cluster_input))
    for c in head.clusters:
        found.append(
            ("rows", "tied" if c.tied else "own", "projection", "none" if not c.projected else "tied" if c.tied_projection else "own")
        )
    attentions = [layer.attention for layer in spec.layers]
    for layer, a in zip(spec.layers, attentions, strict=True):
        found += [("kind", dialect, layer.norm_first, a.start), ("heads", a.heads), ("persistent", a.persistent), ("window", a.window)]
        found += [
            ("segments", dialect, a.segment is not None),
            ("spans", dialect, a.spans is not None),
            ("sees_self", dialect, a.sees_self),
        ]
        found += [("bias", a.bias), ("output_bias", a.output_bias), ("scaled", a.scaled), ("norm_offset", layer.norm_offset == 1)]
        found += [
            ("feed_forward", layer.norm_first, layer.feed_forward is not None),
            ("clamped", getattr(a.position, "clamp", None) is not None),
        ]
        found += [("kept is not a prefix",)] * (a.kept != tuple(range(a.heads))) + [("odd heads",)] * (a.heads % 2)
        found += [("width is not hidden",)] * (a.heads * a.head_dim != spec.hidden)
    found += [("mixed heads",)] * (len({a.heads for a in attentions}) > 1) + [("mixed windows",)] * (
        len({a.window for a in attentions}) > 1
    )
    return found


def _must_fail(case: Case, planted: Checkpoint) -> None:
    """test_engine_keeps_to_the_oracle passes for the checkpoint and fails for the planted one by a margin, whole and token by token."""
    case.check(engine_side.whole(engine_side.torch_runner(case.checkpoint), case.ids), "without the bug")
    for run_engine in (engine_side.whole, engine_side.one_by_one):
        result = run_engine(engine_side.torch_runner(planted), case.ids)
        assert difference(result, case.exact.log_probs) > 10 * case.allowed, f"the bug stayed hidden: {case.checkpoint.provenance}"
        with pytest.raises(AssertionError):
            case.check(result, "planted")


def test_planted_bug_shared_bias_of_the_first_heads_instead_of_the_kept_ones() -> None:
    tried = 0
    for seed in range(SEEDS):
        checkpoint = random_checkpoint(seed)
        pruned = [i for i, layer in enumerate(checkpoint.spec.layers) if layer.attention.kept != tuple(range(layer.attention.heads))]
        if not checkpoint.spec.layers[0].attention.relative or not pruned or random_length(checkpoint) < 5:
            continue
        if checkpoint.spec.layers[pruned[0]].attention.window == 1:  # alone in its softmax, a key has no use for a bias
            continue
        right, wrong = dict(checkpoint.weights), dict(checkpoint.weights)
        for index, layer in enumerate(checkpoint.spec.layers):
            a = layer.attention
            for name in ("content_bias", "position_bias") if a.heads else ():
                shared = (
                    np.random.default_rng([seed, len(name)]).standard_normal((12, a.head_dim)).astype(np.float32)
                )  # of all source heads
                right[f"layers.{index}.attention.{name}"] = shared[list(a.kept)]
                wrong[f"layers.{index}.attention.{name}"] = shared[: a.heads]
        _must_fail(Case.of(replace(checkpoint, weights=right)), replace(checkpoint, weights=wrong))
        tried += 1
        if tried == 8:
            return
    raise AssertionError(f"only {tried} models could show the bug")


def test_planted_bug_one_key_too_few() -> None:
    tried = 0
    for seed in range(SEEDS):
        checkpoint = random_checkpoint(seed)
        attentions = [layer.attention for layer in checkpoint.spec.layers]
        length = random_length(checkpoint)
        if any(a.window < 2 or a.spans or not a.heads or (a.start == "empty" and length <= a.window) for a in attentions):
            continue
        layers = tuple(
            replace(layer, attention=replace(layer.attention, window=layer.attention.window - 1)) for layer in checkpoint.spec.layers
        )
        _must_fail(Case.of(checkpoint), replace(checkpoint, spec=replace(checkpoint.spec, layers=layers).check()))
        tried += 1
        if tried == 8:
            return
    raise AssertionError(f"only {tried} models could show the bug")


def test_planted_bug_clusters_in_the_other_order() -> None:
    tried = 0
    for seed in range(SEEDS):
        checkpoint = random_checkpoint(seed)
        head = checkpoint.spec.head
        assert isinstance(head, Vocabulary)
        if len(head.clusters) < 3:
            continue
        order = "ascending" if head.order == "descending" else "descending"
        spec = replace(checkpoint.spec, head=replace(head, order=order)).check()
        _must_fail(Case.of(checkpoint), replace(checkpoint, spec=spec))
        tried += 1
        if tried == 8:
            return
    raise AssertionError(f"only {tried} models could show the bug")
