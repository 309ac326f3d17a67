"""One sequence's next-token distribution, exact, with the tails of an adaptive softmax computed only where they can matter.

Every probability inside a tail is at most the probability of the tail's entry in the first softmax (its mass), so a tail whose mass is too
small to change an answer is never computed. Questions are generators: they yield the number of a tail, are sent its row, and return their
answer, so that one computation of a tail serves all sequences that ask for it at the same time.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TypeVar

import numpy as np

from engine_kernels.shapes import ClusterShape

Answer = TypeVar("Answer")
Question = Generator[int, np.ndarray, Answer]
Ranked = tuple[np.ndarray, np.ndarray]  # ids int64 and log-probabilities float32, best first, equal ones by ascending id

COLDEST = 1e-30  # below this no two different float32 log-probabilities keep a common weight: the temperature no longer matters


class Distribution:
    """head [n0 + tails] float32: log-softmax of the first cluster's words and the tails' entries, as runner.NextToken gives it."""

    def __init__(self, head: np.ndarray, outputs: Sequence[ClusterShape]) -> None:
        self.starts = [plan.start for plan in outputs]
        self.sizes = [plan.size for plan in outputs]
        self.mass = [0.0] + [float(head[plan.entry]) for plan in outputs[1:]]  # the first cluster's own is never asked for
        self._known: dict[int, np.ndarray] = {0: head[: outputs[0].size]}  # log-probabilities of the whole vocabulary
        self._sums: dict[tuple[int, float], float] = {}

    def top(self, k: int) -> Question[Ranked]:
        """The k most probable tokens (all of them when there are fewer)."""
        best = self._ranked(0, k)
        for cluster in sorted(range(1, len(self.sizes)), key=lambda c: -self.mass[c]):
            if self._can_enter(cluster, best, k):
                yield from self._need(cluster)
                best = _merge(best, self._ranked(cluster, k), k)
        return best

    def draw(self, temperature: float, uniform: float) -> Question[tuple[int, float]]:
        """The first token, in order of ids, at which the sum of p^(1/temperature) passes uniform · total, and its log-probability."""
        power = 1 / max(temperature, COLDEST)
        while True:
            low, high, scale = self._sums_within(power)
            landing = _landing(low, high, uniform)
            if landing is None:
                yield from self._need(self._widest(low, high))
                continue
            cluster, first, last = landing
            if cluster not in self._known:
                yield from self._need(cluster)
                continue
            sums = np.cumsum(_weights(self._known[cluster], power, scale))
            index, other = (min(int(np.searchsorted(sums, at, side="right")), _last_step(sums)) for at in (first, last))
            if index == other:  # always so once every tail is known
                return self.starts[cluster] + index, float(self._known[cluster][index])
            yield from self._need(self._widest(low, high))

    def nucleus(self, temperature: float, top_p: float) -> Question[Ranked]:
        """The fewest tokens, most probable first, whose share of the sum of p^(1/temperature) reaches top_p."""
        power = 1 / max(temperature, COLDEST)
        while True:
            low, high, scale = self._sums_within(power)
            ids, log_probs = self._all_known()
            sums = np.cumsum(_weights(log_probs, power, scale))
            if self._complete():
                return _cut(ids, log_probs, sums, top_p * float(sums[-1]))
            following = max((c for c in range(len(self.sizes)) if c not in self._known), key=lambda c: self.mass[c])
            settled = int(np.count_nonzero(log_probs > self.mass[following]))  # no token of an unknown tail stands before these
            fewest, most = (int(np.searchsorted(sums, top_p * total)) for total in (float(low.sum()), float(high.sum())))
            if fewest == most < settled:
                return _cut(ids, log_probs, sums, top_p * float(high.sum()))
            yield from self._need(following)

    def _need(self, cluster: int) -> Question[None]:
        if cluster not in self._known:
            row = yield cluster
            self._known[cluster] = row + np.float32(self.mass[cluster])

    def _complete(self) -> bool:
        return len(self._known) == len(self.sizes)

    def _ranked(self, cluster: int, k: int) -> Ranked:
        values = self._known[cluster]
        places = _largest(values, k)
        return places + self.starts[cluster], values[places]

    def _can_enter(self, cluster: int, best: Ranked, k: int) -> bool:
        ids, log_probs = best
        if len(ids) < k:
            return True
        worst = float(log_probs[-1])
        return self.mass[cluster] > worst or (self.mass[cluster] == worst and self.starts[cluster] < ids[-1])

    def _all_known(self) -> Ranked:
        clusters = sorted(self._known)
        values = np.concatenate([self._known[c] for c in clusters])
        ids = np.concatenate([np.arange(self.starts[c], self.starts[c] + self.sizes[c]) for c in clusters])
        order = np.argsort(-values, kind="stable")
        return ids[order], values[order]

    def _sums_within(self, power: float) -> tuple[np.ndarray, np.ndarray, float]:
        """Bounds of each cluster's sum of p^power, divided by e^scale; equal for a cluster that is known, and for all at power 1.

        A tail of n tokens and mass m sums to m^power when one token holds it all, to n · (m / n)^power when all share it alike.
        """
        low, high = [], []
        for cluster, size in enumerate(self.sizes):
            if cluster in self._known:
                sums = (self._log_sum(cluster, power),) * 2
            else:
                one, alike = power * self.mass[cluster], np.log(size) + power * (self.mass[cluster] - np.log(size))
                sums = (one, one) if power == 1 else (min(one, alike), max(one, alike))
            low.append(sums[0])
            high.append(sums[1])
        scale = max(high)
        return np.exp(np.array(low) - scale), np.exp(np.array(high) - scale), scale

    def _log_sum(self, cluster: int, power: float) -> float:
        if (cluster, power) not in self._sums:
            values = self._known[cluster]
            peak = power * float(values.max())
            self._sums[cluster, power] = peak + float(np.log(_weights(values, power, peak).sum())) if np.isfinite(peak) else -np.inf
        return self._sums[cluster, power]

    def _widest(self, low: np.ndarray, high: np.ndarray) -> int:
        """The unknown tail whose sum is the least certain."""
        return max((c for c in range(len(self.sizes)) if c not in self._known), key=lambda c: (high[c] - low[c], high[c]))


def draw_from(ranked: Ranked, temperature: float, uniform: float) -> tuple[int, float]:
    """As Distribution.draw, among these tokens alone."""
    order = np.argsort(ranked[0])
    ids, log_probs = ranked[0][order], ranked[1][order]
    power = 1 / max(temperature, COLDEST)
    sums = np.cumsum(_weights(log_probs, power, power * float(log_probs.max())))
    index = min(int(np.searchsorted(sums, uniform * float(sums[-1]), side="right")), _last_step(sums))
    return int(ids[index]), float(log_probs[index])


def nucleus_of(ranked: Ranked, temperature: float, top_p: float) -> Ranked:
    """As Distribution.nucleus, among these tokens alone."""
    power = 1 / max(temperature, COLDEST)
    sums = np.cumsum(_weights(ranked[1], power, power * float(ranked[1][0])))
    return _cut(*ranked, sums, top_p * float(sums[-1]))


def _weights(log_probs: np.ndarray, power: float, scale: float) -> np.ndarray:
    weights: np.ndarray = np.exp(power * log_probs.astype(np.float64) - scale)
    return weights


def _largest(values: np.ndarray, k: int) -> np.ndarray:
    """Places of the k largest values, largest first, equal ones by ascending place."""
    if k == 1:
        return np.array([int(values.argmax())])
    if k >= len(values):
        return np.argsort(-values, kind="stable")
    least = np.partition(values, len(values) - k)[len(values) - k]
    above = np.flatnonzero(values > least)
    places = np.sort(np.concatenate((above, np.flatnonzero(values == least)[: k - len(above)])))
    return places[np.argsort(-values[places], kind="stable")]


def _merge(first: Ranked, second: Ranked, k: int) -> Ranked:
    ids, log_probs = (np.concatenate(pair) for pair in zip(first, second, strict=True))
    order = np.lexsort((ids, -log_probs))[:k]
    return ids[order], log_probs[order]


def _cut(ids: np.ndarray, log_probs: np.ndarray, sums: np.ndarray, enough: float) -> Ranked:
    count = min(int(np.searchsorted(sums, enough)) + 1, len(ids))
    return ids[:count], log_probs[:count]


def _last_step(sums: np.ndarray) -> int:
    """The last place with a weight of its own: where rounding may not pass."""
    return int(np.searchsorted(sums, sums[-1]))


def _landing(low: np.ndarray, high: np.ndarray, uniform: float) -> tuple[int, float, float] | None:
    """The cluster at which the running sum passes uniform · total, with bounds of how far into it; None while unknown sums decide."""
    if np.array_equal(low, high):
        ends = np.cumsum(low)
        cluster = min(int(np.searchsorted(ends, uniform * ends[-1], side="right")), _last_step(ends))
        offset = float(uniform * ends[-1] - (ends[cluster] - low[cluster]))
        return cluster, offset, offset
    for cluster in range(len(low)):
        here, after = slice(cluster, None), slice(cluster + 1, None)
        first = uniform * low[here].sum() - (1 - uniform) * high[:cluster].sum()
        last = uniform * high[here].sum() - (1 - uniform) * low[:cluster].sum()
        beyond = uniform * high[after].sum() - (1 - uniform) * low[: cluster + 1].sum()
        if first >= 0 and beyond < 0:
            return cluster, float(first), float(last)
    return None
