"""What pyproject.toml declares is imported somewhere, and what is imported is declared where it is needed."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from tests.project.test_imports import FILES, OTHER_ENVIRONMENT, imports

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
OURS = ("bench", "engine", "engine_kernels", "tests")
# files: the extras whose packages they may import, beside what every installation has; the first pattern that fits counts.
EXTRAS: list[tuple[str, list[str]]] = [
    ("engine/backends/gpu/*.py", ["gpu"]),
    ("engine/backends/torch/*.py", ["torch"]),
    ("engine/cli/inspect_plot.py", ["bench"]),
    ("engine/export/onnx*.py", ["onnx"]),
    ("engine/formats/pickles.py", ["torch"]),
    ("engine/prune/*.py", ["prune"]),
    ("engine/*.py", []),
    ("kernels/engine_kernels/triton_ops/*.py", ["gpu"]),
    ("kernels/engine_kernels/native.py", []),
    ("kernels/engine_kernels/*.py", ["torch"]),
    ("bench/*.py", ["bench", "gpu", "peers", "prune"]),
]
# Tools that are run, not imported; and what another package of the extra needs beside it.
RUN = {"build", "clang-format", "mypy", "pytest-benchmark", "pytest-xdist", "ruff"}
IMPORTED_AS = {"pytest-benchmark": "pytest_benchmark"}
OF_THAT_ENVIRONMENT = {OTHER_ENVIRONMENT: {"transformers"}}


def declared() -> dict[str, set[str]]:
    """Extra → packages, those of the extras it names among them; "" = what every installation has."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {"": project["dependencies"], **project["optional-dependencies"]}
    found = {extra: set(_packages(lines)) for extra, lines in extras.items()}
    for extra, lines in extras.items():
        for named in re.findall(r"headcount\[(\w+)\]", " ".join(lines)):
            found[extra] |= found[named]
    return found


def _packages(lines: list[str]) -> Iterator[str]:
    for line in lines:
        name = re.match(r"[A-Za-z0-9_.-]+", line)
        assert name is not None, line
        if name[0] != "headcount":
            yield name[0]


def foreign(file: str) -> set[str]:
    """The packages of others that a file imports."""
    tops = {module.split(".")[0] for module, _ in imports(file)}
    return {top for top in tops if top not in sys.stdlib_module_names and top not in OURS}


@pytest.mark.parametrize("file", FILES)
def test_what_a_file_imports_is_declared_for_it(file: str) -> None:
    extras = next(extras for pattern, extras in EXTRAS if fnmatch(file, pattern))
    packages = declared()
    allowed = packages[""].union(*(packages[extra] for extra in extras)) | OF_THAT_ENVIRONMENT.get(file, set())
    assert foreign(file) <= allowed, f"{file} may import what {['every installation', *extras]} have"


def test_what_is_declared_is_imported() -> None:
    tests = [path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py")]
    micro = [path.relative_to(ROOT).as_posix() for path in (ROOT / "bench" / "micro").rglob("*.py")]
    used = set().union(*(foreign(file) for file in [*FILES, *tests, *micro]))
    packages = set().union(*declared().values())
    assert {package for package in packages - RUN if IMPORTED_AS.get(package, package) not in used} == set()


def test_every_pattern_matches_a_file() -> None:
    assert [pattern for pattern, _ in EXTRAS if not any(fnmatch(file, pattern) for file in FILES)] == []
