"""A user's word for a device: what PyTorch's is of it, and the texts of what is none."""

from __future__ import annotations

import pytest
import torch

from engine.backends.fold import fold
from engine.backends.plan import compile_stack
from engine.backends.runner import Limits
from engine.backends.torch.device import gpu_device, torch_device
from engine.backends.torch.runner import build
from engine.errors import BackendUnavailable
from tests.support.random_specs import random_checkpoint


def test_auto_is_the_backends_own_device_and_other_names_are_as_given() -> None:
    assert torch_device("auto", auto="cpu", expected="") == torch.device("cpu")
    assert torch_device("cuda:1", auto="cpu", expected="") == torch.device("cuda:1")
    assert gpu_device("auto", without_gpu=False, variable="") == torch.device("cuda")
    assert gpu_device("auto", without_gpu=True, variable="") == torch.device("cpu") == gpu_device("cpu", without_gpu=True, variable="")


def test_what_is_no_device_is_refused_with_those_there_are() -> None:
    checkpoint = random_checkpoint(2)
    with pytest.raises(BackendUnavailable, match=r"^device: expected auto, cpu, cuda or cuda:N, found 'gpu'$"):
        build(compile_stack(checkpoint.spec), fold(checkpoint), Limits("float32", device="gpu"))
    with pytest.raises(BackendUnavailable, match=r"^device: expected auto, cuda or cuda:N, found 'gpu'$"):
        gpu_device("gpu", without_gpu=False, variable="TRITON_INTERPRET")


@pytest.mark.parametrize(("name", "without_gpu"), [("cpu", False), ("cuda", True)])
def test_a_gpu_backend_has_the_cpu_only_under_its_variable(name: str, without_gpu: bool) -> None:
    with pytest.raises(BackendUnavailable, match=f"^device: expected a GPU, or the CPU under TRITON_INTERPRET=1, found '{name}'$"):
        gpu_device(name, without_gpu=without_gpu, variable="TRITON_INTERPRET")
