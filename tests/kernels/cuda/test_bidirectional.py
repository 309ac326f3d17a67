"""What encoders need of the CUDA kernels: attention of whole sequences and every activation, against float64."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from engine.loading import open_checkpoint
from engine_kernels import reference
from engine_kernels.cuda_ops import CudaKernels
from engine_kernels.errors import KernelError
from engine_kernels.gpu_ops import Sequences
from engine_kernels.testing import assert_close
from tests.kernels.cuda.test_runner import FIXTURES, runner_of
from tests.oracle import bidirectional as oracle
from tests.support.attention_cases import DEVICE, DTYPES, double
from tests.support.engine_side import step

RAGGED = (1, 2, 63, 65, 5)
by_dtype = pytest.mark.parametrize("dtype", ["bfloat16", "float16"])


def kernels() -> CudaKernels:
    return CudaKernels(torch.device(DEVICE))


@by_dtype
@pytest.mark.parametrize(("heads", "head_dim", "lengths"), [(1, 8, RAGGED), (3, 24, (5, 16, 7)), (1, 64, (65,)), (2, 128, (17,))])
def test_whole_sequences(heads: int, head_dim: int, lengths: tuple[int, ...], dtype: str, order: None) -> None:
    """Packed rows of uneven sequences, with NaN behind the last row of keys and values."""
    rng, rows = np.random.default_rng(heads * head_dim), sum(lengths)
    query, keys, values = (
        torch.from_numpy(rng.standard_normal((rows + 9, heads, head_dim))).to(device=DEVICE, dtype=DTYPES[dtype]) for _ in "qkv"
    )
    for behind in (keys, values):
        behind[rows:] = float("nan")
    given = [tensor[:rows] for tensor in (query, keys, values)]
    firsts = np.cumsum((0, *lengths))[:-1]
    first_rows, counts = (torch.from_numpy(np.array(numbers, np.int64)).to(DEVICE) for numbers in (firsts, lengths))
    sequences = Sequences(first_rows, counts, first_rows, first_rows, first_rows)
    new = given[1][:, :, None], given[2][:, :, None]
    found = double(kernels().attend_bidirectional(given[0], new, sequences, np.array(lengths)))
    for first, length in zip(firsts, lengths, strict=True):
        one = [tensor[first : first + length].transpose(0, 1)[None] for tensor in given]  # [1, H, T, D]
        exact, plain = oracle.attend_bidirectional(*map(double, one)), double(reference.attend_bidirectional(*one))
        assert_close(found[first : first + length].swapaxes(0, 1)[None], plain, exact, dtype, f"{length} rows")


@by_dtype
@pytest.mark.parametrize("rows", [61, 70])
@pytest.mark.parametrize("name", ["relu", "gelu", "gelu_tanh", "quick_gelu", "silu"])
def test_an_activation_behind_a_product(name: str, rows: int, dtype: str) -> None:
    """Numbers far into both tails, by few rows and by many, with something added afterwards."""
    x = torch.linspace(-12, 12, rows, device=DEVICE)[:, None].to(DTYPES[dtype])
    weight = torch.tensor([[1.0], [0.5], [-1.0]], device=DEVICE, dtype=DTYPES[dtype])
    residual = torch.full((rows, 3), 0.25, device=DEVICE)
    found = kernels().project(x, weight, activation=name, residual=residual)
    exact = 0.25 + np.vectorize(lambda value: oracle.activation(name, value))(double(x) @ double(weight).T)
    plain = reference.ACTIVATIONS[name](reference.linear(x, weight, None)) + residual
    assert_close(double(found), double(plain), exact, dtype, name)


def test_an_unknown_activation_is_named() -> None:
    with pytest.raises(KernelError, match=r"activation: expected none, relu, .* got swish"):
        kernels().project(torch.zeros(1, 8, device=DEVICE), torch.zeros(8, 8, device=DEVICE, dtype=torch.bfloat16), activation="swish")


@pytest.mark.parametrize("which", ["dense", "pruned"])
def test_the_encoder_fixture(which: str) -> None:
    """Its logits against those of PyTorch on the same weights in float32, within what float16 rounds."""
    from engine.backends.fold import fold
    from engine.backends.plan import compile_stack
    from engine.backends.runner import Limits
    from engine.backends.torch.runner import build

    checkpoint = open_checkpoint(FIXTURES / "hf-bert-tokcls" / which)
    stack, folded = compile_stack(checkpoint.spec), fold(checkpoint)
    ids = [np.arange(3, 20) % checkpoint.spec.vocab, np.arange(2) + 1]
    results = []
    for runner in (runner_of(checkpoint, "float16"), build(stack, folded, Limits("float16")), build(stack, folded, Limits("float32"))):
        slots = [runner.open(), runner.open()]
        logits = step(runner, ids, slots, [0, 0], "logits").logits
        assert logits is not None
        results.append(logits)
    assert_close(*results, "float16", which)
