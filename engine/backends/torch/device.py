"""A user's word for a device → PyTorch's own."""

from __future__ import annotations

import torch

from engine.errors import BackendUnavailable, Problem


def torch_device(name: str, *, auto: str, expected: str) -> torch.device:
    """The device of a name, auto being the one of that name; raises BackendUnavailable with what was expected for what is no device."""
    try:
        return torch.device(auto if name == "auto" else name)
    except RuntimeError:
        raise BackendUnavailable(Problem("device", expected, repr(name))) from None


def gpu_device(name: str, *, without_gpu: bool, variable: str) -> torch.device:
    """The GPU of a name; the CPU where the environment variable of a backend lets it run without a GPU. Raises BackendUnavailable."""
    kind = "cpu" if without_gpu else "cuda"
    device = torch_device(name, auto=kind, expected="auto, cuda or cuda:N")
    if device.type != kind:
        raise BackendUnavailable(Problem("device", f"a GPU, or the CPU under {variable}=1", repr(name)))
    return device
