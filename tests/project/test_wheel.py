"""The wheel installs exactly `engine` and `engine_kernels`."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from engine.version import __version__

ROOT = Path(__file__).parents[2]
INFO = f"headcount-{__version__}.dist-info"


def test_wheel_holds_the_two_packages_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    command += [f"--config-settings=build-dir={tmp_path}/build", "--config-settings=cmake.define.HEADCOUNT_CUDA=OFF", str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = archive.read(f"{INFO}/entry_points.txt").decode()
    assert {name.split("/")[0] for name in names} == {"engine", "engine_kernels", INFO}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "engine").rglob("*.py")}
    sources |= {path.relative_to(ROOT / "kernels").as_posix() for path in (ROOT / "kernels" / "engine_kernels").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == sources
    assert {"engine/py.typed", "engine_kernels/py.typed", "engine_kernels/_native.pyi"} <= names
    assert [name for name in names if name.endswith(".so")] == [name for name in names if name.startswith("engine_kernels/_native.cpython")]
    assert {Path(name).suffix for name in names if "dist-info" not in name} == {".py", ".pyi", ".so", ".typed"}
    assert "headcount = engine.cli:main" in entry_points.replace("headcount=", "headcount = ")
    assert f"{INFO}/licenses/LICENSE" in names
