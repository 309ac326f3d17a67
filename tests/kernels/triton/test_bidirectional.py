"""attend_bidirectional and the activations against the float64 oracle, by the launcher that also serves a device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

pytest.importorskip("triton", reason="Triton is not installed: pip install 'headcount[gpu]'", exc_type=ImportError)

import torch

from engine_kernels import reference
from engine_kernels.gpu_ops import Sequences
from engine_kernels.testing import assert_close
from engine_kernels.triton_ops.bidirectional import attend_bidirectional
from engine_kernels.triton_ops.launch import Launcher, architecture
from engine_kernels.triton_ops.ops import TritonOps
from engine_kernels.triton_ops.projections import project
from tests.oracle import bidirectional as oracle
from tests.support.attention_cases import DEVICE, DTYPES, double

RAGGED = (63, 1, 65, 2)


def launcher() -> Launcher:
    """With a GPU's tiles also where the interpreter runs them."""
    return Launcher(architecture(torch.device(DEVICE)) if DEVICE == "cuda" else "sm_80")


def compare(lengths: Sequence[int], heads: int, head_dim: int, dtype: str) -> None:
    """Sequences apart by a row of NaN, before the first and behind the last too; those rows are neither read nor written."""
    rng, gap = np.random.default_rng(heads), torch.full((1, heads, head_dim), torch.nan)
    drawn = [[torch.from_numpy(rng.standard_normal((length, heads, head_dim)) * 1.5) for length in lengths] for _ in "qkv"]
    query, keys, values = (torch.cat([gap, *(part for rows in parts for part in (rows, gap))]).to(DEVICE, DTYPES[dtype]) for parts in drawn)
    firsts = np.cumsum([1, *(length + 1 for length in lengths[:-1])])
    first_rows, counts, zeros = (torch.tensor(list(numbers), device=DEVICE) for numbers in (firsts, lengths, [0] * len(lengths)))
    out = torch.full(query.shape, torch.nan, device=DEVICE)
    sequences = Sequences(first_rows, counts, zeros, zeros, zeros)
    attend_bidirectional(launcher(), query, (keys[:, :, None], values[:, :, None]), sequences, np.array(lengths), out)
    for first, length in zip(firsts.tolist(), lengths, strict=True):
        given = [rows[first : first + length].transpose(0, 1)[None] for rows in (query, keys, values)]
        exact, plain = oracle.attend_bidirectional(*map(double, given)), reference.attend_bidirectional(*given)
        found = out[first : first + length].transpose(0, 1)[None]
        assert_close(double(found), double(plain), exact, dtype, f"{length} of {lengths}, {heads} heads of {head_dim}, {dtype}")
    untouched = torch.ones(len(out), dtype=torch.bool)
    for first, length in zip(firsts.tolist(), lengths, strict=True):
        untouched[first : first + length] = False
    assert untouched.sum() == len(lengths) + 1 and torch.isnan(out[untouched]).all()


@pytest.mark.parametrize(("heads", "dtype"), [(1, "float32"), (3, "float16")])
def test_ragged_sequences_keep_to_the_oracle(heads: int, dtype: str) -> None:
    compare(RAGGED, heads, 5, dtype)


def test_short_sequences_in_tiles_of_their_own() -> None:
    compare((2, 1, 16), 3, 64, "float16")


def test_bfloat16_keeps_to_the_oracle(bfloat16: None) -> None:
    compare(RAGGED, 1, 32, "bfloat16")


def test_a_long_sequence_has_whole_blocks_and_a_rest_in_large_tiles() -> None:
    compare((257,), 1, 8, "float16")


@pytest.mark.parametrize("heads", [0, 1, 3, 7, 8])
def test_any_number_of_heads(heads: int) -> None:
    ops, rng = TritonOps(launcher()), np.random.default_rng(heads)
    given = [torch.from_numpy(rng.standard_normal((2, heads, 3, 8)).astype(np.float32)).to(DEVICE) for _ in "qkv"]
    found = ops.attend_bidirectional(*given)
    assert found.shape == (2, heads, 3, 8)
    if heads:
        exact = oracle.attend_bidirectional(*map(double, given))
        assert_close(double(found), double(reference.attend_bidirectional(*given)), exact, "float32", f"{heads} heads")
    else:
        assert not ops.launch.calls  # a layer without heads starts nothing


def test_layers_of_one_batch_share_its_list_of_tiles() -> None:
    each = torch.tensor([0, 3], device=DEVICE)
    sequences, rows = Sequences(each, torch.tensor([3, 2], device=DEVICE), each, each, each), torch.zeros(5, 1, 8, device=DEVICE)
    for _ in range(2):
        attend_bidirectional(launcher(), rows, (rows, rows), sequences, np.array([3, 2]), rows)
        assert len(sequences.tiles) == 1
        sequence, row = next(iter(sequences.tiles.values()))
        assert sequence.tolist() == [0, 1] and row.tolist() == [0, 0]


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # an exponential that becomes infinite leaves 0, as on a GPU
@pytest.mark.parametrize("name", ["relu", "gelu", "gelu_tanh", "quick_gelu", "silu"])
def test_an_activation_behind_a_product_keeps_to_the_oracle(name: str) -> None:
    """x, x / 2 and -x of numbers far into both tails, as three columns, with something added afterwards."""
    x = torch.linspace(-12, 12, 61, device=DEVICE)[:, None]
    weight, residual = torch.tensor([[1.0], [0.5], [-1.0]], device=DEVICE), torch.full((61, 3), 0.25, device=DEVICE)
    found = project(launcher(), x, weight, activation=name, residual=residual)
    exact = 0.25 + np.vectorize(lambda value: oracle.activation(name, value))(double(x) @ double(weight).T)
    plain = reference.ACTIVATIONS[name](reference.linear(x, weight, None)) + residual
    assert_close(double(found), double(plain), exact, "float32", name)
    without = project(launcher(), x, weight)
    assert_close(double(without), double(x @ weight.T), double(x) @ double(weight).T, "float32", "no activation")
