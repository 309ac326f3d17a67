"""The sampler against the whole distribution, sorted and summed by brute force; and how little of it was computed."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from engine.errors import EngineError
from engine.runtime.options import GenerationOptions
from engine.runtime.sampler import Request, sample, uniform
from tests.support.fake_runner import FakeNext, plan_outputs

SIZES = [(7,), (5, 3, 1), (20, 6, 9, 40), (1, 1), (3, 63, 65)]
CASES = list(itertools.product(SIZES, ("ascending", "descending"), (0.3, 3.0)))


def distributions(sizes: tuple[int, ...], order: str, sharpness: float, rows: int = 24) -> tuple[FakeNext, Any]:
    outputs = plan_outputs(sizes, order)
    random = np.random.default_rng([*sizes, int(10 * sharpness), len(order)])
    head = sharpness * random.normal(size=(rows, sizes[0] + len(sizes) - 1))
    head[::2, sizes[0] :] -= 3  # every other row has small tails
    return FakeNext(head, {c: sharpness * random.normal(size=(rows, size)) for c, size in enumerate(sizes) if c}), outputs


def ranked(log_probs: np.ndarray) -> np.ndarray:
    return np.lexsort((np.arange(len(log_probs)), -log_probs))


def brute_force(log_probs: np.ndarray, options: GenerationOptions, at: float) -> int:
    """Sort everything, cut to top_k, temper, cut to top_p, walk the sum in order of ids."""
    order = ranked(log_probs)
    if options.temperature == 0:
        return int(order[0])
    order = order[: options.top_k or len(order)]
    weights = np.exp((log_probs[order].astype(np.float64) - float(log_probs.max())) / options.temperature)
    if options.top_p is not None:
        sums = np.cumsum(weights)
        order = order[: int(np.argmax(sums >= options.top_p * sums[-1])) + 1]
        weights = weights[: len(order)]
    by_id = np.argsort(order)
    sums = np.cumsum(weights[by_id])
    return int(order[by_id][np.searchsorted(sums, at * sums[-1], side="right")])


@pytest.mark.parametrize(("sizes", "order", "sharpness"), CASES)
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"temperature": 1.0},
        {"temperature": 0.4},
        {"temperature": 2.5},
        {"temperature": 1.0, "top_k": 3},
        {"temperature": 1.7, "top_k": 4, "top_p": 0.8},
        {"temperature": 1.0, "top_p": 0.5},
        {"temperature": 0.6, "top_p": 0.95},
        {"temperature": 3.0, "top_p": 0.7},
        {"temperature": 1e-12},
        {"temperature": 1e9, "top_k": 1},
    ],
    ids=str,
)
def test_every_draw_is_that_of_the_whole_distribution(sizes: tuple[int, ...], order: str, sharpness: float, given: dict[str, Any]) -> None:
    following, outputs = distributions(sizes, order, sharpness)
    options = GenerationOptions(**given)
    dense = following.dense(outputs)
    requests = [Request(options, seed, index) for seed, index in zip(range(len(dense)), itertools.cycle((0, 1, 5)), strict=False)]
    draws = sample(following, outputs, requests)
    for log_probs, request, draw in zip(dense, requests, draws, strict=True):
        assert draw.id == brute_force(log_probs, options, uniform(request.seed, request.index))
        assert draw.logprob == log_probs[draw.id]  # before any temperature


@pytest.mark.parametrize(("sizes", "order", "sharpness"), CASES)
@pytest.mark.parametrize("n", [1, 2, 6, 1000])
def test_logprobs_are_the_most_probable_tokens_in_order(sizes: tuple[int, ...], order: str, sharpness: float, n: int) -> None:
    following, outputs = distributions(sizes, order, sharpness)
    draws = sample(following, outputs, [Request(GenerationOptions(logprobs=n), 0, 0)] * len(following.head))
    for log_probs, draw in zip(following.dense(outputs), draws, strict=True):
        best = ranked(log_probs)[:n]
        assert draw.top == tuple((int(i), float(log_probs[i])) for i in best)


def test_draws_have_the_frequencies_of_the_distribution() -> None:
    """The uniform number swept over [0, 1) lands on each token as often as its probability says, at T = 1 and tempered."""
    following, outputs = distributions((4, 3, 2), "descending", 1.0, rows=1)
    dense = following.dense(outputs)[0].astype(np.float64)
    sweep = (np.arange(4000) + 0.5) / 4000
    from engine.runtime.distribution import Distribution

    for temperature in (1.0, 0.5, 2.0):
        counts = np.zeros(len(dense))
        for at in sweep:
            question = Distribution(following.head[0], outputs).draw(temperature, float(at))
            token = None
            try:
                cluster = next(question)
                while True:
                    cluster = question.send(following.tail(cluster, np.array([0]))[0])
            except StopIteration as stop:
                token = stop.value[0]
            counts[token] += 1
        expected = np.exp(dense / temperature)
        assert np.abs(counts / 4000 - expected / expected.sum()).max() < 1 / 2000


def peaked(tail_masses: tuple[float, ...], word: float) -> tuple[FakeNext, Any]:
    """One word of the first cluster with probability `word`, tails with these masses, the rest spread thinly."""
    outputs = plan_outputs((10, *(8 for _ in tail_masses)))
    rest = (1 - word - sum(tail_masses)) / 9
    head = np.log(np.array([[word] + [rest] * 9 + list(tail_masses)]))
    return FakeNext(head, {c: np.zeros((1, 8)) for c in range(1, len(tail_masses) + 1)}), outputs


def computed(following: FakeNext, outputs: Any, **given: Any) -> list[int]:
    sample(following, outputs, [Request(GenerationOptions(**given), 3, 0)])
    return [cluster for cluster, _ in following.computed]


def test_greedy_skips_tails_that_cannot_win() -> None:
    assert computed(*peaked((0.2, 0.1), word=0.5)) == []
    assert computed(*peaked((0.4, 0.1), word=0.3)) == [1]
    assert computed(*peaked((0.3, 0.3), word=0.2)) == [1, 2]


def test_top_k_skips_tails_below_the_kth_best() -> None:
    following, outputs = peaked((0.2, 0.004), word=0.5)  # nine words at 0.0329, eight of the first tail at 0.025
    assert computed(following, outputs, temperature=1.0, top_k=5) == [1]
    following, outputs = peaked((0.02, 0.004), word=0.5)
    assert computed(following, outputs, temperature=0.7, top_k=5) == []


def test_drawing_at_temperature_1_computes_the_tail_it_lands_in_and_no_other() -> None:
    for seed in range(40):
        following, outputs = peaked((0.3, 0.3), word=0.2)
        (draw,) = sample(following, outputs, [Request(GenerationOptions(temperature=1.0), seed, 0)])
        landed = 0 if draw.id < 10 else 1 + (draw.id - 10) // 8
        assert [c for c, _ in following.computed] == ([landed] if landed else [])


def test_tempered_draws_skip_tails_too_light_to_matter() -> None:
    following, outputs = peaked((1e-6, 1e-7), word=0.9)
    assert computed(following, outputs, temperature=0.5) == []
    following, outputs = peaked((0.2, 0.2), word=0.3)
    assert computed(following, outputs, temperature=5.0) != []


def test_a_nucleus_inside_the_first_cluster_computes_no_tail() -> None:
    assert computed(*peaked((0.01, 0.01), word=0.7), temperature=1.0, top_p=0.6) == []
    assert computed(*peaked((0.01, 0.01), word=0.7), temperature=1.0, top_p=1 - 1e-9) == [1, 2]


def test_a_tail_is_computed_once_for_all_sequences_that_need_it() -> None:
    following, outputs = distributions((2, 9), "ascending", 0.1)
    following.head[:, 2] = 0.0  # the tail's mass beats every word
    sample(following, outputs, [Request(GenerationOptions(), 0, 0)] * len(following.head))
    assert following.calls == 1 and len(following.computed) == len(following.head)


def test_ties_go_to_the_lowest_id() -> None:
    outputs = plan_outputs((2, 1, 1), "descending")
    even = FakeNext(np.log(np.array([[0.1, 0.1, 0.4, 0.4]])), {1: np.zeros((1, 1)), 2: np.zeros((1, 1))})
    (draw,) = sample(even, outputs, [Request(GenerationOptions(logprobs=3), 0, 0)])
    assert draw.id == 2 and [token for token, _ in draw.top] == [2, 3, 0]


def test_a_tail_whose_mass_only_equals_the_best_is_computed_where_its_ids_are_lower() -> None:
    outputs = plan_outputs((2, 1, 2))
    following = FakeNext(np.zeros((1, 4)), {1: np.zeros((1, 1)), 2: np.zeros((1, 2))})
    following.head = np.array([[-5, -5, -1, -0.5]], np.float32)
    following._tails[2] = np.array([[-0.5, -10]], np.float32)  # its best, id 3, equals the only word of tail 1, id 2
    (draw,) = sample(following, outputs, [Request(GenerationOptions(), 0, 0)])
    assert draw.id == 2 and following.computed == [(2, 0), (1, 0)]
    following.head[0, 0] = -0.5  # a word of the first cluster as good as both masses: no tail can beat its id
    following.computed.clear()
    (draw,) = sample(following, outputs, [Request(GenerationOptions(), 0, 0)])
    assert draw.id == 0 and following.computed == []


def test_a_draw_does_not_depend_on_its_batch() -> None:
    following, outputs = distributions((5, 30, 30), "ascending", 2.0)
    kinds = [
        GenerationOptions(temperature=t, top_p=p, logprobs=n) for t, p, n in ((1.0, None, 0), (0.7, 0.9, 2), (0.0, None, 1), (2.0, None, 0))
    ]
    requests = [Request(kinds[i % 4], seed=i % 3, index=i) for i in range(len(following.head))]
    together = sample(following, outputs, requests)
    for i, request in enumerate(requests):
        alone = FakeNext(following.head[i : i + 1], {})
        alone.head = following.head[i : i + 1]
        alone._tails = {c: rows[i : i + 1] for c, rows in following._tails.items()}
        assert sample(alone, outputs, [request]) == [together[i]]


def test_uniform_is_a_function_of_seed_and_index() -> None:
    numbers = {uniform(seed, index) for seed in (0, 1, 2**64 - 1) for index in range(50)}
    assert len(numbers) == 150 and all(0 <= u < 1 for u in numbers)
    assert uniform(7, 3) == uniform(7, 3)
    assert uniform(0, 0) == pytest.approx(float(np.random.Generator(np.random.Philox(key=0, counter=0)).random()))


def test_impossible_tails_and_words_are_never_drawn() -> None:
    outputs = plan_outputs((3, 2, 2))
    head = np.array([[0.0, -np.inf, 0.0, -np.inf, 0.0]])
    with np.errstate(divide="ignore"):
        following = FakeNext(head, {1: np.zeros((1, 2)), 2: np.array([[0.0, -np.inf]])})
    for seed, temperature in itertools.product(range(30), (0.5, 1.0, 2.0)):
        (draw,) = sample(following, outputs, [Request(GenerationOptions(temperature=temperature), seed, 0)])
        assert draw.id in (0, 2, 5)


def test_nan_is_refused() -> None:
    following, outputs = distributions((4, 2), "ascending", 1.0)
    following.head[1, 0] = np.nan
    with pytest.raises(EngineError, match="NaN"):
        sample(following, outputs, [Request(GenerationOptions(), 0, 0)] * len(following.head))
