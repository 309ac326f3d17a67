"""One word for each idea: the glossary of docs/architecture.md, and no word that it replaces anywhere else."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GLOSSARY = ROOT / "docs" / "architecture.md"
FOLDERS = ("engine", "kernels", "bench", "tests", "tools", "examples", "docs")
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CMakeLists.txt", "Makefile", "pyproject.toml")
TEXT = {".py", ".pyi", ".md", ".h", ".cc", ".cu", ".sh", ".cmake", ".txt", ".toml", ""}
HERE = ("docs/architecture.md", "tests/project/test_words.py")  # where a replaced word has to stand
# Names of other programs' settings and tensors: theirs, where files of theirs are read, written, described or made for tests.
FOREIGN = ("num_heads", "n_heads", "n_head", "nheads", "pers_mem", "rel_pos", "bptt")
THEIRS = ("engine/formats/", "engine/export/", "tests/", "docs/", "examples/", "README.md", "bench/peers/", "bench/suites/encoder/")


def glossary() -> dict[str, list[str]]:
    """Word → the words it replaces."""
    lines = GLOSSARY.read_text(encoding="utf-8").split("## Words", 1)[1].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")][2:]
    return {word: re.findall(r"`([^`]+)`", never) for word, _, never in rows}


def files() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", *FOLDERS, *DOCUMENTS], cwd=ROOT, capture_output=True, text=True
    )
    found = listed.stdout.split() or [path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in (ROOT / folder).rglob("*.*")]
    apart = ("tests/fixtures/", *HERE)
    return [file for file in found if Path(file).suffix in TEXT and (ROOT / file).is_file() and not file.startswith(apart)]


def uses(text: str, word: str) -> bool:
    return re.search(rf"(?<![A-Za-z_]){re.escape(word)}(?![A-Za-z])", text) is not None


def test_the_glossary_is_one() -> None:
    words = glossary()
    assert 20 <= len(words) <= 30
    assert all(words.values()), "each word says what it replaces"


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    found = {file: (ROOT / file).read_text(encoding="utf-8") for file in files()}
    assert len(found) > 300
    return found


@pytest.mark.parametrize("word", glossary())
def test_no_other_word_is_used_for_it(word: str, texts: dict[str, str]) -> None:
    for never in glossary()[word]:
        apart = THEIRS if never in FOREIGN else ()
        found = [file for file, text in texts.items() if not file.startswith(apart) and uses(text, never)]
        assert found == [], f"{never!r} is called {word!r} here"


def test_a_replaced_word_is_found() -> None:
    assert uses("a stack that sees_both", "sees_both") and uses("the CPU that plays a GPU.", "plays a GPU")
    assert not uses("oversees_bothersome", "sees_both")
