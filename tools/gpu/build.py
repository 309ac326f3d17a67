"""`python -m tools.gpu.build WAY`: the project built offline into a folder outside the checkout, and its modules imported from there.

The checkout's own `engine`, `bench` and `tests` run beside it: `engine_kernels` is not on the checkout's path, so with the folder on
PYTHONPATH it comes from there, compiled modules included. What was built of the same sources is kept.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.kernels.cuda.machine_code import find_cuobjdump, targets_in

ROOT = Path(__file__).parents[2]
FOLDER = Path(tempfile.gettempdir()) / f"headcount-gpu-{hashlib.sha256(bytes(ROOT)).hexdigest()[:8]}"
NATIVE = {"HEADCOUNT_WIDE": "OFF", "HEADCOUNT_CUDA": "OFF"}  # wide: instruction sets of the CPU that no step needs
HOPPER = {**NATIVE, "HEADCOUNT_CUDA": "ON", "HEADCOUNT_CUDA_ARCHITECTURES": "90a-real"}
WAYS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {  # CMake's options, and the modules that must load
    "cuda": (HOPPER, ("_native", "_cuda")),
    "trapping": ({**HOPPER, "HEADCOUNT_CUDA_TRAP": "ON"}, ("_native", "_cuda")),  # a wait without end stops the kernel
    "native": (NATIVE, ("_native",)),
    "emulated": ({**NATIVE, "HEADCOUNT_EMULATED_CUDA": "ON"}, ("_native", "_cuda_emulated")),
}
IMPORT = "import importlib, sys; print(*[importlib.import_module('engine_kernels.' + name).__file__ for name in sys.argv[1:]], sep='\\n')"


def main(way: str) -> None:
    options, modules = WAYS[way]
    if "_cuda" not in modules and all(_installed(f"engine_kernels.{name}") for name in modules):
        print(f"build: {' and '.join(modules)} are installed here; nothing is built")
        return
    target, stamp = FOLDER / way, FOLDER / f"{way}.state"
    if not (stamp.exists() and stamp.read_text() == state(options)):
        for folder in (target, FOLDER / f"{way}.build"):
            shutil.rmtree(folder, ignore_errors=True)
        stamp.unlink(missing_ok=True)
        _install(way, options, target)
    found = _import(modules, target)
    if strange := [file for file in found if not Path(file).is_relative_to(target)]:
        sys.exit(f"build: expected {' and '.join(modules)} from {target}, found {strange}: uninstall headcount from this Python")
    stamp.write_text(state(options))
    print(f"build: {' and '.join(modules)} load from {target}")
    for module in (file for name, file in zip(modules, found, strict=True) if name == "_cuda"):
        _look_into(module, options)


def state(options: dict[str, str]) -> str:
    """A number of the sources, this Python and the options."""
    files = [ROOT / "CMakeLists.txt", ROOT / "pyproject.toml"]
    files += [path for path in (ROOT / "kernels").rglob("*") if path.suffix not in (".pyc", ".so") and path.is_file()]
    number = hashlib.sha256(repr((sys.version, sorted(options.items()))).encode())
    for file in sorted(files):
        number.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes())
    return number.hexdigest()


def _install(way: str, options: dict[str, str], target: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-v",
        "--disable-pip-version-check",
        "--no-build-isolation",
        "--no-deps",
        "--no-index",
    ]
    command += [f"--config-settings=build-dir={FOLDER / f'{way}.build'}"]
    command += [f"--config-settings=cmake.define.{name}={value}" for name, value in options.items()]
    command += older(importlib.metadata.version("scikit-build-core"))
    environment = {"CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1), **os.environ}
    if code := subprocess.run([*command, "--target", str(target), "."], cwd=ROOT, env=environment).returncode:
        sys.exit(f"build: pip ended with {code}")


def older(version: str) -> list[str]:
    """What makes a scikit-build-core before 1.0, which builds the project too, pass over the version that pyproject.toml asks for."""
    return [f"--config-settings=minimum-version={version}"] if int(version.split(".")[0]) < 1 else []


def objections(libraries: str, targets: list[str], architectures: str) -> list[str]:
    """What is wrong with a module of CUDA kernels. libraries: what ldd says of it; targets: what it holds code for."""
    wrong = [f"it needs {name}, which belongs to the driver or is linked in" for name in ("libcuda.so", "libcudart") if name in libraries]
    asked = sorted(f"sm_{name.removesuffix('-real')}" for name in architectures.split(";"))
    return wrong + ([] if targets == asked else [f"it holds code for {targets}, and {asked} was asked for"])


def _look_into(module: str, options: dict[str, str]) -> None:
    """Said and no more: what does not load or does not run shows by itself."""
    if (cuobjdump := find_cuobjdump()) is None or shutil.which("ldd") is None:
        print("build: _cuda was not looked into: cuobjdump or ldd is not here")
        return
    libraries = subprocess.run(["ldd", module], stdout=subprocess.PIPE, text=True).stdout
    targets = sorted(set(targets_in(cuobjdump, Path(module))))  # of each source file
    wrong = objections(libraries, targets, options["HEADCOUNT_CUDA_ARCHITECTURES"])
    print(f"build: _cuda holds code for {', '.join(targets)}; {'; '.join(['WRONG', *wrong]) if wrong else 'it is as asked'}")


def _import(modules: tuple[str, ...], target: Path) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": str(target)}
    done = subprocess.run([sys.executable, "-c", IMPORT, *modules], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"build: {' and '.join(modules)} do not load from {target}")
    return done.stdout.split()


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


if __name__ == "__main__":
    main(sys.argv[1])
