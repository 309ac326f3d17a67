"""A long text costs no more memory at a time than a short one: nothing in a step grows with the text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engine

torch = pytest.importorskip("torch")
SOURCE = Path(__file__).parents[1] / "fixtures" / "aiha-char" / "checkpoint.ckpt"


def largest_tensor(work: Any) -> int:
    """The most elements of any tensor that an operation of `work` makes."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_flatten

    sizes = [0]

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            sizes.extend(item.numel() for item in tree_flatten(result)[0] if isinstance(item, torch.Tensor))
            return result

    with Sizes():
        work()
    return max(sizes)


@pytest.fixture(scope="module")
def model() -> engine.Model:
    return engine.load(SOURCE, backend="torch", threads=1)


def test_scoring_a_long_text_makes_no_tensor_larger_than_scoring_a_short_one(model: engine.Model) -> None:
    ids = np.random.default_rng(0).integers(0, model.spec.vocab, (1, 8192))
    short, long = (largest_tensor(lambda length=length: model.score(ids[:, :length])) for length in (1024, 8192))
    assert 0 < long == short < 8192 * 8192 // 16


def test_a_token_after_a_long_prompt_costs_what_one_after_a_short_prompt_costs(model: engine.Model) -> None:
    prompt = np.random.default_rng(0).integers(0, model.spec.vocab, 4096)
    short, long = (largest_tensor(lambda length=length: model.generate(prompt[:length], max_new_tokens=3)) for length in (1024, 4096))
    assert 0 < long == short
