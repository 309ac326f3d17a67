"""Single layers of every size through the native module, on every instruction set here, against the float64 oracle.

A case is one layer; its rows run as one sequence, in two parts, and as a batch of single rows at uneven positions. Weights are what the
dtype holds of them, dequantised for int8. The rule is engine_kernels.testing's, in float32, for every unit that multiplies rows as they
are; in bfloat16, for int8 too, for one that rounds them first (ROUNDS_ROWS): its own rounded rows depend on its own sums, so there is no
oracle on exactly those, and what they add stays within the rule in bfloat16. p is the oracle in float32 on weights moved by 4 eps of
float32, or by one of bfloat16, so that a row where rounding weighs more than elsewhere always widens the limit.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from itertools import combinations, product
from typing import Any, Literal

import ml_dtypes
import numpy as np

from engine_kernels.native import NativeModel
from engine_kernels.ops import Visibility
from engine_kernels.shapes import AttentionShape, LayerShape
from engine_kernels.testing import EPS, difference, tolerance
from tests.oracle.layer import layer
from tests.support.int8_weights import MULTIPLIED, rounded, transposed

SIZES: dict[str, tuple[Any, ...]] = {
    "rows": (1, 2, 7, 8, 9, 63, 65, 193, 1000),
    "heads": (0, 1, 3, 7, 8),
    "persistent": (0, 1, 17, 2048),
    "head_dim": (16, 24, 32, 64, 80, 128),
    "window": (1, 2, 16, 17, 63, 65, 193, 512, 513),
    "dtype": ("float32", "bfloat16", "int8"),
}
VARIANTS: dict[str, tuple[Any, ...]] = {
    "first_distance": (0, 1),
    "zeros": (False, True),
    "relative": ("none", "per_head", "shared"),
    "biased": (False, True),
    "segment": (0, 7),
    "ramp": (0, 4),
    "norm_first": (True, False),
    "feed_forward": (0, 33),
    "scores": ("usual", "large", "equal"),
}
HIDDEN = 20
UNITS = ("generic", "avx2", "avx512", "avx512_bf16", "amx", "emulated")
# (instruction set, dtype) whose units round rows before a product: to bfloat16, or to sixteen-bit whole numbers for int8
ROUNDS_ROWS = {(name, "int8") for name in UNITS} | {(name, "bfloat16") for name in ("avx512_bf16", "amx", "emulated")}
MOST_WORK = 1e7  # of a case in `covering` and `drawn`: rows · heads · (window + persistent) · head_dim
MOST_RING_BYTES = 1 << 28  # of a batch of single rows, keys and values in float32
MOST_ROWS = 4096  # of all sequences before a batch of single rows


@dataclass(frozen=True)
class Case:
    """rows: the longest sequence, and the largest batch. scores: up to ±1e4 when large; one key for all rows when equal."""

    rows: int
    heads: int
    persistent: int
    head_dim: int
    window: int
    dtype: str
    first_distance: int = 0
    zeros: bool = True
    relative: Literal["none", "per_head", "shared"] = "per_head"
    biased: bool = True
    segment: int = 0
    ramp: int = 0
    norm_first: bool = True
    feed_forward: int = 0
    scores: str = "usual"
    seed: int = 0

    @property
    def work(self) -> int:
        return self.rows * self.heads * (self.window + self.persistent) * self.head_dim

    @property
    def visibility(self) -> Visibility:
        alone = self.first_distance == 1 and self.persistent == 0  # without zeros its first row would see nothing at all
        reach = self.window + max(0, self.segment - 1)
        return Visibility(self.window, self.segment, reach, self.first_distance, self.zeros or alone)

    @property
    def spans(self) -> tuple[float, ...] | None:
        if not self.ramp:
            return None
        return tuple(np.random.default_rng([self.seed, 15]).uniform(0, self.window, self.heads).astype(np.float32).tolist())

    @property
    def shape(self) -> LayerShape:
        attention = AttentionShape(
            self.heads, self.head_dim, self.persistent, self.visibility, self.relative, self.spans, self.ramp if self.spans else 0
        )
        return LayerShape(attention if self.heads else None, self.feed_forward, "relu", self.norm_first, 1e-5)


@dataclass(frozen=True)
class Outcome:
    """How far each way of running came from the oracle, as a share of what is allowed: ≤ 1 passes; NaN never does."""

    case: Case
    ratios: dict[str, float]  # "avx2, whole" → difference / tolerance

    @property
    def failed(self) -> dict[str, float]:
        return {how: ratio for how, ratio in self.ratios.items() if not ratio <= 1}


@contextmanager
def forced(name: str) -> Iterator[None]:
    """A model made inside runs on this instruction set."""
    before = os.environ.get("HEADCOUNT_CPU_ISA")
    os.environ["HEADCOUNT_CPU_ISA"] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ["HEADCOUNT_CPU_ISA"]
        else:
            os.environ["HEADCOUNT_CPU_ISA"] = before


# --- which cases


def full() -> list[dict[str, Any]]:
    """Every combination of SIZES but the rows: a case of 1,000 is its shorter ones too, for a row sees none after it."""
    names = [name for name in SIZES if name != "rows"]
    return [dict(zip(names, values, strict=True)) for values in product(*(SIZES[name] for name in names))]


def full_case(number: int) -> Case:
    """One of `full`, with VARIANTS drawn for it."""
    return Case(rows=max(SIZES["rows"]), **full()[number], **_drawn(VARIANTS, np.random.default_rng([number, 7])), seed=number)


@cache
def covering() -> list[Case]:
    """Each pair of values of two fields of SIZES and VARIANTS in at least one case; greedy, the same on every machine."""
    fields = SIZES | VARIANTS
    missing = {((a, x), (b, y)) for a, b in combinations(fields, 2) for x, y in product(fields[a], fields[b])}
    rng, cases = np.random.default_rng(0), []
    while missing:
        wanted = sorted(missing, key=str)[:: max(1, len(missing) // 20)]  # never left to luck
        tried = [_drawn(fields, rng) | dict(pair) for pair in wanted for _ in range(6)]
        tried = [values for values in tried if Case(**values).work <= MOST_WORK] or [_least(dict(pair)) for pair in wanted]
        best = max(tried, key=lambda values: len(missing & _pairs(values)))
        missing -= _pairs(best)
        cases.append(Case(**best, seed=len(cases)))
    return cases


def drawn(count: int) -> list[Case]:
    """Seeded draws with windows of any size from 1 to 513, few of them large."""
    cases = []
    for seed in range(count):
        rng = np.random.default_rng([seed, 8])
        values = _drawn(SIZES | VARIANTS, rng) | {"window": int(np.exp(rng.uniform(0, np.log(514))))}
        while Case(**values).work > MOST_WORK / 4:
            values |= {"rows": int(rng.integers(1, 100)), "persistent": int(rng.integers(0, 300)), "heads": int(rng.integers(0, 5))}
        cases.append(Case(**values, seed=seed))
    return cases


def _drawn(fields: dict[str, tuple[Any, ...]], rng: np.random.Generator) -> dict[str, Any]:
    return {name: values[int(rng.integers(len(values)))] for name, values in fields.items()}


def _least(fixed: dict[str, Any]) -> dict[str, Any]:
    """The smallest case with these values."""
    return {name: values[0] for name, values in (SIZES | VARIANTS).items()} | {"heads": 1} | fixed


def _pairs(values: dict[str, Any]) -> set[Any]:
    return set(combinations(values.items(), 2))


# --- a case's numbers


def arrays_of(case: Case) -> dict[str, np.ndarray]:
    """float32 arrays of the layer: scores of a few units, or as case.scores says."""
    rng, visibility = np.random.default_rng([case.seed, 9]), case.visibility
    heads, dim, width = case.heads, case.head_dim, case.heads * case.head_dim

    def normal(*size: int, spread: float = 1.0) -> np.ndarray:
        return (rng.standard_normal(size) * spread).astype(np.float32)

    arrays = {"attention_norm": 1 + normal(HIDDEN, spread=0.2), "attention_norm_bias": normal(HIDDEN, spread=0.2)}
    if case.biased:
        arrays["attention.output_bias"] = normal(HIDDEN)
    if heads:
        for name in ("query", "key", "value"):
            arrays[f"attention.{name}"] = normal(width, HIDDEN, spread=HIDDEN**-0.5)
            if case.biased:
                arrays[f"attention.{name}_bias"] = normal(width)
        arrays["attention.output"] = normal(HIDDEN, width, spread=width**-0.5)
        if case.persistent:
            arrays["attention.persistent_keys"] = normal(heads, case.persistent, dim, spread=dim**-0.5)
            arrays["attention.persistent_values"] = normal(heads, case.persistent, dim)
        if case.relative != "none":
            arrays["attention.distances"] = normal(heads if case.relative == "per_head" else 1, visibility.reach, dim)
            if case.biased:
                arrays |= {"attention.content_bias": normal(heads, dim), "attention.position_bias": normal(heads, dim)}
    if case.feed_forward:
        arrays |= {"feed_forward_norm": 1 + normal(HIDDEN, spread=0.2), "feed_forward_norm_bias": normal(HIDDEN, spread=0.2)}
        arrays |= {"feed_forward.up": normal(case.feed_forward, HIDDEN, spread=0.2)}
        arrays |= {"feed_forward.down": normal(HIDDEN, case.feed_forward, spread=0.2)}
    if heads and case.scores == "large":
        for name in arrays.keys() & {f"attention.{n}" for n in ("key", "persistent_keys", "distances")}:
            arrays[name] *= np.float32(3000)
    if heads and case.scores == "equal":  # every key is its bias, or zero
        arrays["attention.key"] *= 0
    if visibility.attended_zeros and heads:
        arrays |= {f"attention.zero_{name}": arrays.get(f"attention.{name}_bias", np.zeros(width, np.float32)) for name in ("key", "value")}
        arrays |= {f"attention.zero_{name}": arrays[f"attention.zero_{name}"].reshape(heads, dim) for name in ("key", "value")}
    return arrays


def as_bfloat16(w: np.ndarray) -> np.ndarray:
    return w.astype(ml_dtypes.bfloat16).astype(np.float32)


def stored(arrays: dict[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    """The arrays with the numbers a dtype keeps of what is multiplied with."""
    if dtype == "float32":
        return arrays
    result = dict(arrays)
    for name, w in arrays.items():
        kind = name.split(".")[-1]
        if kind in (*MULTIPLIED, "persistent_values"):
            if dtype == "bfloat16":
                result[name] = as_bfloat16(w)
            else:
                result[name] = transposed(rounded(transposed(w))) if kind == "persistent_values" else rounded(w)
    return result


def allowed(case: Case, held: dict[str, np.ndarray], x: np.ndarray, exact: np.ndarray, rule: str) -> float:
    """The rule's tolerance, of the farthest of a few p where two large scores may nearly tie and one p may have luck."""
    rng, step = np.random.default_rng([case.seed, 10]), (4 * EPS["float32"] if rule == "float32" else EPS["bfloat16"])
    farthest = 0.0
    for _ in range(1 if case.scores != "large" else 8 if case.rows < 100 else 4):
        moved = {name: w * (1 + rng.choice((-step, step), w.shape)).astype(np.float32) for name, w in held.items()}
        farthest = max(farthest, tolerance(layer(asdict(case.shape), moved, x), exact, rule))
    return farthest


# --- running it


def run_case(case: Case, names: Sequence[str], row_counts: Sequence[int] = ()) -> Outcome:
    """The case on each of these instruction sets, with its own number of rows and these smaller ones."""
    arrays = arrays_of(case)
    held = stored(arrays, case.dtype)
    x = np.random.default_rng([case.seed, 11]).standard_normal((case.rows, HIDDEN)).astype(np.float32)
    exact = layer(asdict(case.shape), held, x.astype(np.float64))
    ratios: dict[str, float] = {}
    for rule, group in _by_rule(case.dtype, names).items():
        most = allowed(case, held, x, exact, rule)
        for name in group:
            with forced(name):
                model = NativeModel(
                    HIDDEN, "bfloat16" if case.dtype == "bfloat16" else "float32", 1, "int8" if case.dtype == "int8" else None
                )
            model.add_layer(case.shape, arrays)
            gaps: dict[str, list[float]] = {"whole": [], "single rows": []}
            for rows in sorted({r for r in row_counts if r < case.rows} | {case.rows}):
                gaps["whole"].append(difference(_whole(model, x[:rows]), exact[:rows]))
                if rows * case.heads * case.visibility.reach * case.head_dim * 8 > MOST_RING_BYTES:
                    continue
                found, places = _singles(model, x, rows, case)
                gaps["single rows"].append(difference(found, exact[places]))
            ratios |= {f"{name}, {how}": share(float(np.max(found)), most) for how, found in gaps.items()}  # np.max keeps a NaN
    return Outcome(case, ratios)


def share(gap: float, most: float) -> float:
    """gap / most; a single word's log-probability is 0 and allows nothing else."""
    return 0.0 if gap == 0 else gap / most if most else float("inf")


def _by_rule(dtype: str, names: Sequence[str]) -> dict[str, list[str]]:
    """The dtype of the rule → the instruction sets held to it."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault("bfloat16" if (name, dtype) in ROUNDS_ROWS else "float32", []).append(name)
    return groups


def _whole(model: NativeModel, x: np.ndarray) -> np.ndarray:
    """One sequence in two steps, the second from the middle of a block."""
    model.grow(1)
    model.restart(0)
    cut = len(x) // 3
    parts = [x[:cut].copy(), x[cut:].copy()]
    for part, start in zip(parts, (0, cut), strict=True):
        if len(part):
            model.step(part, np.zeros(1, np.int64), np.array([start]), np.array([len(part)]))
    return np.concatenate(parts)


def _singles(model: NativeModel, x: np.ndarray, batch: int, case: Case) -> tuple[np.ndarray, np.ndarray]:
    """A row of each of `batch` sequences, which are the first rows of x at uneven lengths; those rows and their places in x."""
    longest = min(len(x) - 1, case.visibility.reach + 5, max(1, MOST_ROWS // batch))
    lengths = (longest - np.arange(batch) * 37) % (longest + 1)
    model.grow(batch)
    for slot in range(batch):
        model.restart(slot)
    begun = np.flatnonzero(lengths)
    if len(begun):
        before = np.concatenate([x[: lengths[slot]] for slot in begun])
        model.step(before, begun, np.zeros(len(begun), np.int64), lengths[begun])
    rows = x[lengths].copy()
    model.step(rows, np.arange(batch), lengths, np.ones(batch, np.int64))
    return rows, lengths
