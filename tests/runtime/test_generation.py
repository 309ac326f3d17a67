"""The token loop on a fake runner: what is fed when, who shares a step, and that every slot comes back."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest

from engine.errors import InputError
from engine.runtime import generation as loop
from engine.runtime.executor import CHUNK, Executor, groups
from engine.runtime.generation import generate
from engine.runtime.options import GenerationOptions
from engine.runtime.sequence import Completion, Generation
from tests.support.fake_runner import FakeRunner


def complete(executor: Executor, prompts: list[list[int]], **given: Any) -> list[Completion]:
    generations = [Generation.start(np.array(prompt), GenerationOptions(**given), None) for prompt in prompts]
    for _ in generate(executor, generations):
        pass
    return [g.completion() for g in generations]


def greedy(runner: FakeRunner, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(runner.log_probs(ids)[-1].argmax()))
    return ids[len(prompt) :]


def test_greedy_follows_the_most_probable_token() -> None:
    runner = FakeRunner()
    (done,) = complete(Executor(runner), [[1, 2, 3]], max_new_tokens=20)
    assert done.ids == greedy(runner, [1, 2, 3], 20)
    assert done.finish_reason == "length" and done.text is None and done.seed is None
    full = runner.log_probs([1, 2, 3, *done.ids])
    assert [entry.logprob for entry in done.logprobs] == [full[2 + i, token] for i, token in enumerate(done.ids)]


@pytest.mark.parametrize("length", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
def test_long_prompts_are_fed_in_chunks(length: int) -> None:
    runner = FakeRunner()
    prompt = np.random.default_rng(0).integers(0, 12, length).tolist()
    (done,) = complete(Executor(runner), [prompt], max_new_tokens=2)
    assert done.ids == greedy(runner, prompt, 2)
    assert max(len(batch.ids) for batch in runner.batches) <= CHUNK
    assert sum(len(batch.ids) for batch in runner.batches) == length + 1  # the last token drawn is never fed
    assert runner.open_slots == 0


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.7])
def test_a_batch_gives_what_each_prompt_gives_alone(temperature: float) -> None:
    runner = FakeRunner((5, 3, 4, 9))
    random = np.random.default_rng(1)
    prompts = [random.integers(0, 21, n).tolist() for n in (1, 7, 2, 300, 63, 65, 1)]
    given: dict[str, Any] = {"max_new_tokens": 9, "temperature": temperature, "seed": 11, "stop_ids": frozenset([4]), "logprobs": 2}
    together = complete(Executor(runner), prompts, **given)
    alone = [complete(Executor(FakeRunner((5, 3, 4, 9))), [prompt], **given)[0] for prompt in prompts]
    assert together == alone
    assert runner.open_slots == 0


def test_sequences_decode_together_and_leave_when_finished() -> None:
    runner = FakeRunner()
    prompts = [[n % 12] for n in range(6)]
    ends = [greedy(runner, prompt, 5) for prompt in prompts]
    stop = ends[0][1]
    done = complete(Executor(runner), prompts, max_new_tokens=5, stop_ids=frozenset([stop]))
    expected = [end[: end.index(stop) + 1] if stop in end else end for end in ends]
    assert [c.ids for c in done] == expected
    assert [c.finish_reason for c in done] == ["stop" if stop in ids else "length" for ids in expected]
    sizes = [len(batch.slots) for batch in runner.batches]
    assert sizes == [sum(len(ids) > step for ids in expected) for step in range(max(map(len, expected)))]


def test_more_prompts_than_run_together_wait_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "MOST_RUNNING", 3)
    runner = FakeRunner()
    prompts = [[n % 12, 1] for n in range(8)]
    done = complete(Executor(runner), prompts, max_new_tokens=4)
    assert [c.ids for c in done] == [greedy(runner, prompt, 4) for prompt in prompts]
    assert max(len(batch.slots) for batch in runner.batches) == 3 and runner.open_slots == 0


def test_seeds_differ_when_none_is_given_and_repeat_when_it_is() -> None:
    executor = Executor(FakeRunner((40, 20)))
    first, second = complete(executor, [[1], [1]], max_new_tokens=30, temperature=1.5)
    assert first.seed != second.seed and first.ids != second.ids
    again = complete(executor, [[1]], max_new_tokens=30, temperature=1.5, seed=first.seed)[0]
    assert again == first


def test_closing_early_frees_the_slot() -> None:
    runner = FakeRunner()
    executor = Executor(runner)
    tokens = generate(executor, [Generation.start(np.array([1]), GenerationOptions(), None)])
    next(tokens), next(tokens)
    assert runner.open_slots == 1
    tokens.close()
    assert runner.open_slots == 0


def test_an_abandoned_stream_frees_its_slot() -> None:
    runner = FakeRunner()
    tokens = generate(Executor(runner), [Generation.start(np.array([1]), GenerationOptions(), None)])
    next(tokens)
    del tokens
    gc.collect()
    assert runner.open_slots == 0


def test_a_stream_collected_in_the_middle_of_a_step_does_not_deadlock() -> None:
    runner = FakeRunner()
    executor = Executor(runner)
    tokens = generate(executor, [Generation.start(np.array([1]), GenerationOptions(), None)])
    next(tokens)
    with executor._locked():
        tokens.close()  # as the garbage collector may do on this very thread
        assert runner.open_slots == 1
    assert complete(executor, [[2]], max_new_tokens=1)
    assert runner.open_slots == 0


def test_a_failing_step_frees_every_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = FakeRunner()
    monkeypatch.setattr(runner, "step", lambda batch: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        complete(Executor(runner), [[1], [2]])
    assert runner.open_slots == 0


def test_a_closed_model_says_so_even_to_a_running_stream() -> None:
    executor = Executor(FakeRunner())
    tokens = generate(executor, [Generation.start(np.array([1]), GenerationOptions(), None)])
    next(tokens)
    executor.close()
    with pytest.raises(InputError, match="closed"):
        next(tokens)
    with pytest.raises(InputError, match="closed"):
        executor.open()


def test_threads_share_one_runner() -> None:
    runner = FakeRunner((9, 8))
    executor, results = Executor(runner), dict[int, list[int]]()
    prompts = {n: [n, n + 1] for n in range(8)}
    threads = [
        threading.Thread(target=lambda n=n: results.update({n: complete(executor, [prompts[n]], max_new_tokens=40)[0].ids}))
        for n in prompts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == {n: greedy(runner, prompt, 40) for n, prompt in prompts.items()}
    assert runner.open_slots == 0


def test_groups_cover_every_sequence_once_within_the_budget() -> None:
    random = np.random.default_rng(2)
    for most_rows in (1, 64, 1024):
        lengths = random.integers(1, 257, 60).tolist()
        found = list(groups(lengths, most_rows))
        assert [i for group in found for i in group] == list(range(60))
        assert all(len(g) == 1 or len(g) * max(lengths[i] for i in g) <= most_rows for g in found)
    assert list(groups([])) == []
