"""`python -m tools.gpu.facts`: the machine, by its driver and without PyTorch; `facts built`: what PyTorch, Triton and our module see.

Every line is out before the next is asked for.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata

PACKAGES = ("torch", "triton", "numpy", "ml_dtypes", "safetensors", "pytest", "pytest-xdist", "scikit-build-core", "pybind11", "cmake")
QUERY = "name,driver_version,memory.total,memory.used,clocks.sm,clocks.mem,clocks.max.sm,temperature.gpu,mig.mode.current,compute_mode"
# Numbers of CUdevice_attribute in cuda.h.
ATTRIBUTES = {
    "multiprocessors": 16,
    "shared memory of a multiprocessor": 81,
    "shared memory of a block, opted in": 97,
    "L2 cache": 38,
    "cooperative launch": 95,
    "cluster launch": 120,
    "threads of a multiprocessor": 39,
    "registers of a multiprocessor": 82,
}


def main(built: bool) -> None:
    for name, ask in (BUILT if built else MACHINE).items():
        try:
            print(f"{name}: {ask()}", flush=True)
        except Exception as error:  # a fact that cannot be had is a fact
            print(f"{name}: none: {type(error).__name__}: {error}", flush=True)


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=8).stdout.strip()


def _versions() -> str:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{name} none")
    return ", ".join(found)


def _attributes() -> str:
    cuda, device, value = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.c_int()
    if code := cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0):
        raise OSError(f"the driver answers error {code}")
    found = []
    for name, number in ATTRIBUTES.items():
        code = cuda.cuDeviceGetAttribute(ctypes.byref(value), number, device)
        found.append(f"{name} {f'error {code}' if code else value.value}")
    return ", ".join(found)


def _torch() -> str:
    import torch

    name, capability = torch.cuda.get_device_name(0), torch.cuda.get_device_capability(0)
    return f"{torch.__version__} with CUDA {torch.version.cuda}, {name}, {capability}, {torch.cuda.mem_get_info()[0] >> 20} MiB free"


def _triton() -> str:
    """A kernel of the project on 5 rows of 64 numbers."""
    import torch

    from engine_kernels.gpu_ops import Norm
    from engine_kernels.triton_ops.launch import launcher
    from engine_kernels.triton_ops.projections import normalise

    device, began = torch.device("cuda"), time.monotonic()
    x = torch.randn(5, 64, device=device)
    found = normalise(launcher(device), x, Norm(torch.ones(64, device=device), torch.zeros(64, device=device), 1e-5))
    away = (found - torch.nn.functional.layer_norm(x, (64,))).abs().max().item()
    return f"normalise compiled and run in {time.monotonic() - began:.1f} s, {away:.1e} from PyTorch's"


def _clusters() -> str:
    """How many clusters of 1 to 16 blocks of decode_step are there at once."""
    import torch

    from engine_kernels import _cuda

    torch.zeros(1, device="cuda")  # makes it the current GPU
    return str(_cuda.clusters_at_once())


MACHINE: dict[str, Callable[[], object]] = {
    "kernel": lambda: f"{platform.release()}, {platform.platform()}",
    "cores": os.cpu_count,
    "python": lambda: f"{sys.version.split()[0]} at {sys.executable}",
    "packages": _versions,
    "commit": lambda: _said("git", "rev-parse", "HEAD") or "none",
    "nvcc": lambda: _said("nvcc", "--version").rsplit("\n", 1)[-1],
    "tools": lambda: {name: shutil.which(name) for name in ("compute-sanitizer", "ncu", "cuobjdump", "ninja", "c++")},
    "GPU": lambda: _said("nvidia-smi", f"--query-gpu={QUERY}", "--format=csv"),
    "driver": _attributes,
}
BUILT: dict[str, Callable[[], object]] = {"PyTorch": _torch, "Triton": _triton, "clusters of 1 to 16 blocks": _clusters}

if __name__ == "__main__":
    main("built" in sys.argv)
