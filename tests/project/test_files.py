"""The shape of the repository: sizes, the container that is no package, and promises made in prose."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = {".py", ".pyi", ".sh", ".cc", ".h", ".cu", ".cuh"}
MOST_LINES = 400


def test_no_file_is_longer_than_can_be_held_in_mind() -> None:
    folders = ("engine", "kernels", "bench", "tests", "examples", "tools")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in CODE]
    assert len(files) > 30
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {file: lines for file, lines in lengths.items() if lines > MOST_LINES} == {}


def test_kernels_is_a_container_and_never_a_package() -> None:
    """Another distribution ships the import name `kernels`; ours must not shadow it."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert (ROOT / "kernels" / "engine_kernels" / "__init__.py").exists()


def test_only_the_binding_knows_python() -> None:
    sources = {
        path.relative_to(ROOT / "kernels" / "csrc").as_posix(): path.read_text() for path in (ROOT / "kernels" / "csrc").rglob("*.*")
    }
    assert all(file.startswith("bindings/") for file, text in sources.items() if "pybind11/" in text)
    assert [file for file, text in sources.items() if "torch/" in text] == []
    assert [file for file, text in sources.items() if "Python.h" in text] == ["bindings/python_array.h"]
    includes = [file for file, text in sources.items() if '#include "bindings/' in text]
    assert includes and all(file.startswith("bindings/") for file in includes)


def test_ci_runs_make_ci_and_nothing_else() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    lines = [line for line in script.read_text().splitlines() if line and not line.startswith("#")]
    assert lines == ['cd "$(dirname "$0")/.." && exec make ci']


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_every_make_verb_a_document_names_exists(document: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^|\s)make ([a-z]+)(?=`|\s*$|\s+#)", (ROOT / document).read_text(encoding="utf-8"), re.MULTILINE))
    assert named, f"{document} names no verb"
    assert named <= targets


def test_every_file_the_recipes_name_exists_or_is_to_be_made() -> None:
    """In CONTRIBUTING a path in backticks exists, unless it holds NAME: that one is the reader's to make."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:engine|kernels|tests|bench|docs|examples|tools)/[^`\s]+|[A-Za-z]+\.(?:md|toml|txt))`", text)
    assert len(named) > 10
    assert [path for path in named if "NAME" not in path and not (ROOT / path).exists()] == []
