"""What an error says is part of the product: the texts of wrong inputs, one of each kind, are those of error_texts.json.

A text that should change is changed there too: `python -m tests.support.bad_inputs tests/model/error_texts.json`, and the note says why.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.bad_inputs import CASES, error_of

pytest.importorskip("torch")
TEXTS: dict[str, str] = json.loads(Path(__file__).with_name("error_texts.json").read_text(encoding="utf-8"))


def test_every_case_has_its_text() -> None:
    assert sorted(TEXTS) == sorted(CASES)


@pytest.mark.parametrize("name", CASES)
def test_the_text_is_the_one_it_was(name: str, tmp_path: Path) -> None:
    assert error_of(name, tmp_path) == TEXTS[name]
