"""Use an unpacked wheel as its user would: without the checkout on the path. Run as `python -S tools/try_wheel.py FOLDER SITE_PACKAGES`.

-S keeps the editable install out; the dependencies come back by their folder, behind the wheel.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

folder, site_packages = (str(Path(argument).resolve()) for argument in sys.argv[1:])
checkout = Path(__file__).resolve().parents[1]
sys.path[:1] = [folder, site_packages]

import numpy as np  # noqa: E402
import pytest  # noqa: E402

import engine  # noqa: E402
from engine_kernels import native  # noqa: E402

for module in (engine, native):
    if not str(module.__file__).startswith(folder):
        sys.exit(f"{module.__name__} came from {module.__file__}, not from the wheel in {folder}")
if not native.all_finite(np.ones(3)) or native.all_finite(np.array([1.0, np.inf])):
    sys.exit("the wheel's native module gives wrong answers")
if importlib.util.find_spec("engine_kernels._cuda") is not None:  # built with HEADCOUNT_CUDA=ON: imported without a driver too
    importlib.import_module("engine_kernels._cuda")

tiny = checkout / "tests" / "test_tiny.py"
options = ["-q", "--override-ini=pythonpath=", "-p", "no:cacheprovider"]
sys.exit(pytest.main([*options, str(tiny)]) if tiny.exists() else 0)
