"""Who may import whom. The table is the rule; what stands below it only reads the sources."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# group: its files, and the groups it may import; a group may also import whatever those may.
GROUPS: dict[str, tuple[list[str], list[str]]] = {
    "errors": (["engine/errors.py", "engine/version.py"], []),
    "spec": (["engine/spec/*.py"], ["errors"]),
    "checkpoint": (["engine/checkpoint/*.py"], ["spec"]),
    "kernels": (["kernels/engine_kernels/*.py"], []),
    "backends": (["engine/backends/*.py"], ["checkpoint", "kernels"]),
    "formats": (["engine/formats/*.py"], ["checkpoint"]),
    "export": (["engine/export/*.py"], ["checkpoint", "formats", "backends"]),
    "runtime": (["engine/runtime/*.py"], ["backends"]),
    "prune": (["engine/prune/*.py"], ["backends", "formats"]),
    "model": (["engine/loading.py", "engine/model.py", "engine/__init__.py"], ["formats", "runtime"]),
    "measure": (["engine/measure/*.py"], ["model"]),
    "cli": (["engine/cli/*.py", "engine/__main__.py"], ["measure", "prune", "export"]),
    "bench": (["bench/*.py"], ["cli"]),
}
STDLIB_ONLY = ["errors", "spec"]
TORCH = ("torch", "einops", "triton")
OTHER_ENVIRONMENT = "bench/peers/transformers_worker.py"  # a script of the environment of `make bench-peers`, never imported
TORCH_FILES = [
    "kernels/engine_kernels/reference.py",
    "kernels/engine_kernels/gpu_ops.py",
    "kernels/engine_kernels/cuda_decode.py",
    "kernels/engine_kernels/cuda_ops.py",
    "kernels/engine_kernels/triton_ops/*.py",
    "engine/formats/pickles.py",
    "engine/prune/*.py",
    "engine/backends/torch/*.py",
    "engine/backends/gpu/*.py",
    "bench/*.py",
]
FILES = sorted(path.relative_to(ROOT).as_posix() for top in ("engine", "kernels", "bench") for path in (ROOT / top).rglob("*.py"))


def group_of(file: str) -> str:
    """The group a file belongs to, the longest pattern first: a file in no group is an error of this table."""
    matches = [(len(pattern), group) for group, (patterns, _) in GROUPS.items() for pattern in patterns if fnmatch(file, pattern)]
    assert matches, f"{file} is in no group: put it into GROUPS"
    return max(matches)[1]


def allowed(group: str) -> set[str]:
    return {group}.union(*(allowed(below) for below in GROUPS[group][1]))


def file_of(module: str) -> str | None:
    """The file of one of our modules; None for anybody else's."""
    top = module.split(".")[0]
    folder = {"engine": ROOT, "bench": ROOT, "tests": ROOT, "engine_kernels": ROOT / "kernels"}.get(top)
    if folder is None:
        return None
    path = folder.joinpath(*module.split("."))
    found = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return found.relative_to(ROOT).as_posix()


def imports(file: str, *, typed: bool = True) -> Iterator[tuple[str, bool]]:
    """Each module a file imports, with whether it is at the top of the file; typed: also what only the type checker reads."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    inner = {
        id(node)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef | ast.If)
        for node in ast.walk(outer)
    }
    unread = {
        id(node)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.If) and isinstance(outer.test, ast.Name) and outer.test.id == "TYPE_CHECKING"
        for node in ast.walk(outer)
    }
    for node in ast.walk(tree):
        if id(node) in unread and not typed:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            base = str(node.module)
            below = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if (file_of(name) and (ROOT / str(file_of(name))).exists()) else base for name in below]
        else:
            continue
        yield from ((name, id(node) not in inner) for name in dict.fromkeys(names))


def test_every_pattern_matches_a_file() -> None:
    assert unmatched(pattern for patterns, _ in GROUPS.values() for pattern in patterns) == []
    assert unmatched(TORCH_FILES) == []
    assert unmatched(["engine/spec/*.py", "engine/nowhere/*.py"]) == ["engine/nowhere/*.py"]


SCRIPTS = sorted(path.relative_to(ROOT).as_posix() for top in ("examples", "tools") for path in (ROOT / top).rglob("*.py"))


@pytest.mark.parametrize("file", SCRIPTS)
def test_what_a_script_imports_of_ours_is_there(file: str) -> None:
    """Examples and tools, which no test imports."""
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in ("engine", "engine_kernels", "bench", "tests", "tools"):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                compiled = alias.name.startswith("_")  # a module that not every installation has
                assert compiled or hasattr(module, alias.name) or importlib.util.find_spec(f"{node.module}.{alias.name}"), alias.name


def unmatched(patterns: Iterable[str]) -> list[str]:
    return [pattern for pattern in patterns if not any(fnmatch(file, pattern) for file in FILES)]


def test_no_import_goes_in_a_circle() -> None:
    arrows = {file: {target for module, _ in imports(file, typed=False) if (target := file_of(module)) in FILES} - {file} for file in FILES}
    assert circle_of(arrows) is None
    assert circle_of({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def circle_of(arrows: Mapping[str, set[str]]) -> list[str] | None:
    """A path of arrows that ends where it begins; None where there is none."""
    done: set[str] = set()

    def walk(path: list[str]) -> list[str] | None:
        for target in sorted(arrows.get(path[-1], ())):
            if target in path:
                return [*path[path.index(target) :], target]
            if target not in done and (found := walk([*path, target])):
                return found
        done.add(path[-1])
        return None

    return next((found for file in sorted(arrows) if file not in done and (found := walk([file]))), None)


@pytest.mark.parametrize("file", FILES)
def test_a_file_imports_only_what_its_group_may(file: str) -> None:
    group = group_of(file)
    for module, at_top in imports(file):
        top = module.split(".")[0]
        where = f"{file} ({group}) imports {module}"
        assert top != "tests", where
        if top == "bench":
            assert group == "bench" or (group == "cli" and not at_top), where
        elif (target := file_of(module)) is not None and target not in ("engine/__init__.py", "kernels/engine_kernels/__init__.py"):
            assert group_of(target) in allowed(group), f"{where} ({group_of(target)}), which may import {sorted(allowed(group))}"
        if top in TORCH:
            assert any(fnmatch(file, pattern) for pattern in TORCH_FILES), where
        if group in STDLIB_ONLY:
            assert top == "engine" or top in sys.stdlib_module_names, where
        assert top not in ("transformers", "fairseq") or file == OTHER_ENVIRONMENT, where


def test_the_rule_sees_what_it_forbids(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "engine" / "spec").mkdir(parents=True)
    (tmp_path / "engine" / "checkpoint").mkdir()
    (tmp_path / "engine" / "loading.py").touch()
    for line in (
        "import torch",
        "from engine import loading",
        "import numpy",
        "def f():\n    import engine.loading",
        "import tests.oracle",
    ):
        (tmp_path / "engine" / "spec" / "types.py").write_text(line)
        with pytest.raises(AssertionError, match=r"engine/spec/types\.py \(spec\) imports"):
            test_a_file_imports_only_what_its_group_may("engine/spec/types.py")


@pytest.mark.parametrize(
    "module", ["engine", "engine.spec", "engine.spec.cost", "engine.checkpoint", "engine.runtime", "engine_kernels.native"]
)
def test_import_needs_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit(', '.join(sorted({{'torch', 'triton', 'transformers'}} & sys.modules.keys())) or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"import {module} brings in: {done.stderr}"
