"""The reference's attention of bidirectional layers and its activations, against the oracle by the one tolerance rule."""

from __future__ import annotations

import numpy as np
import pytest

from engine_kernels.testing import assert_close
from tests.oracle import bidirectional

torch = pytest.importorskip("torch")
from engine_kernels import reference  # noqa: E402


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("heads", "rows"), [(1, 1), (3, 2), (7, 63), (1, 65), (3, 130)])
def test_bidirectional_attention(heads: int, rows: int, dtype: str) -> None:
    rng = np.random.default_rng(rows)
    kind = getattr(torch, dtype)
    given = [torch.from_numpy(rng.standard_normal((2, heads, rows, 5)) * 1.5).to(kind) for _ in range(3)]
    oracle = bidirectional.attend_bidirectional(*(tensor.double().numpy() for tensor in given))
    plain = torch.nn.functional.scaled_dot_product_attention(*given).double().numpy()
    found = reference.attend_bidirectional(given[0].float(), given[1], given[2])
    assert found.dtype == torch.float32
    assert_close(found.numpy(), plain, oracle, dtype, "attend_bidirectional")


def test_the_block_of_query_rows_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    given = [torch.from_numpy(np.random.default_rng(0).standard_normal((1, 2, 70, 4)).astype(np.float32)) for _ in range(3)]
    blocks = reference.attend_bidirectional(*given)
    monkeypatch.setattr(reference, "QUERY_ROWS", 1000)
    assert torch.allclose(blocks, reference.attend_bidirectional(*given), atol=1e-6)


@pytest.mark.parametrize("name", reference.ACTIVATIONS)
def test_activations(name: str) -> None:
    x = np.linspace(-9, 9, 181, dtype=np.float32)
    oracle = np.array([bidirectional.activation(name, float(value)) for value in x])
    found = reference.ACTIVATIONS[name](torch.from_numpy(x)).numpy()
    assert_close(found, oracle.astype(np.float32), oracle, "float32", name)


def test_exact_and_approximate_gelu_are_told_apart() -> None:
    x = torch.linspace(-4, 4, 81)
    exact, other, quick = (reference.ACTIVATIONS[name](x) for name in ("gelu", "gelu_tanh", "quick_gelu"))
    assert 1e-4 < (exact - other).abs().max() < 1e-3 < 1e-2 < (exact - quick).abs().max()
