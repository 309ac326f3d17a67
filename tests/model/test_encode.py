"""encode and logits: every family and task against the oracle, padding in any place, ragged lists, and wrong calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engine
from engine.backends.plan import compile_stack
from engine.errors import InputError, Unsupported
from engine.runtime.executor import bidirectional_batch
from engine.spec import Absolute, AttentionSpec, Cluster, Embedding, FeedForward, LayerSpec, ModelSpec, Rotary
from engine.spec.cost import model_cost
from tests.oracle import hugging_face as oracle
from tests.support.hugging_face_sources import Source, encoder

pytest.importorskip("torch")
KINDS = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert")
TASKS = ("Model", "ForTokenClassification", "ForSequenceClassification", "ForMaskedLM", "ForQuestionAnswering")
PRUNED = {0: [1], 1: [0, 1, 2], 2: [0, 2]}
CLOSE = 5e-6


def expected_hidden(source: Source, ids: Any, seen: Any = None, types: Any = None, heads: Any = None) -> np.ndarray:
    heads = np.ones((source.layers, source.heads)) if heads is None else heads
    seen, types = np.ones(len(ids)) if seen is None else seen, np.zeros(len(ids), int) if types is None else types
    return oracle.hidden_states(source.config, source.tensors, ids, seen, types, heads)


def random_ids(source: Source, length: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, source.config["vocab_size"], length)


@pytest.fixture(scope="module", params=["cpu", "torch"])
def bert(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[engine.Model, Source]:
    source = encoder()
    return engine.load(source.write(tmp_path_factory.mktemp("bert")), backend=request.param, dtype="float32"), source


@pytest.fixture
def torch_bert(tmp_path: Path) -> tuple[engine.Model, Source]:
    source = encoder()
    return engine.load(source.write(tmp_path / "bert"), backend="torch"), source


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_family_and_task(kind: str, task: str, tmp_path: Path) -> None:
    source = encoder(kind, task, seed=KINDS.index(kind))
    source.write(tmp_path, PRUNED, pruned_heads={str(layer): heads for layer, heads in PRUNED.items()})
    heads = source.mask(PRUNED)
    ids = random_ids(source, 9)
    ids[4] = source.config["pad_token_id"]  # no place of its own for XLM-R, an ordinary token elsewhere
    hidden = expected_hidden(source, ids, heads=heads)
    with engine.load(tmp_path) as model:
        assert np.abs(model.encode([ids])[0] - hidden).max() < CLOSE
        if task == "Model":
            with pytest.raises(InputError, match="a model with a task head"):
                model.logits([ids])
        else:
            expected = oracle.task_logits(source.config, source.tensors, hidden)
            found = model.logits([ids])[0]
            assert found.shape == expected.shape and found.dtype == np.float32
            assert np.abs(found - expected).max() < 2 * CLOSE


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
@pytest.mark.parametrize(
    "seen", [[1, 1, 1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1, 1, 1], [1, 0, 1, 1, 0, 0, 1, 0]], ids=["right", "left", "holes"]
)
def test_padding_wherever_it_stands(kind: str, seen: list[int], tmp_path: Path) -> None:
    """Positions count from the ids, hidden tokens included; results are zeros at hidden places, elsewhere untouched by them."""
    source = encoder(kind, "Model")
    ids = np.stack([random_ids(source, 8, seed) for seed in (1, 2)])
    ids[0, 7] = source.config["pad_token_id"]
    mask = np.array([seen, [1] * 8])
    types = np.array([[0] * 8, [0, 0, 0, 1, 1, 1, 1, 0]]) if kind == "bert" else None
    with engine.load(source.write(tmp_path)) as model:
        found = model.encode(ids, mask, types)
    for row in range(2):
        expected = expected_hidden(source, ids[row], mask[row], None if types is None else types[row])
        assert np.abs(found[row] - expected)[mask[row] == 1].max() < CLOSE
        assert not found[row][mask[row] == 0].any()


def test_a_batch_is_its_sequences_and_no_more(bert: tuple[engine.Model, Source]) -> None:
    """Ragged lists, arrays with a mask, torch tensors and one at a time: the same answers; most steps hold several lengths."""
    torch = pytest.importorskip("torch")
    model, source = bert
    lengths = [1, 2, 7, 23, 22, 7, 1, 13]
    rows = [random_ids(source, length, seed) for seed, length in enumerate(lengths)]
    alone = [model.encode([row])[0] for row in rows]
    ragged = model.encode([row.tolist() for row in rows])
    padded, mask = np.zeros((8, 23), np.int64), np.zeros((8, 23), np.int64)
    for index, row in enumerate(rows):
        padded[index, : len(row)], mask[index, : len(row)] = row, 1
    assert ragged.shape == (8, 23, 12)
    for index, length in enumerate(lengths):
        assert np.abs(ragged[index, :length] - alone[index]).max() < 1e-6
        assert not ragged[index, length:].any()
    assert np.array_equal(model.encode(padded, mask), ragged)
    assert np.array_equal(model.encode(torch.from_numpy(padded), torch.from_numpy(mask).bool()), ragged)
    assert np.abs(model.logits(padded, mask)[3] - model.logits([rows[3]])[0]).max() < 1e-5


def test_only_visible_rows_are_computed(bert: tuple[engine.Model, Source], monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = bert
    batches: list[int] = []
    step = model._runner.step  # type: ignore[union-attr]
    monkeypatch.setattr(model._runner, "step", lambda batch: batches.append(len(batch.ids)) or step(batch))
    model.encode([[1] * 20] * 3, [[1] * 20, [1] * 3 + [0] * 17, [1] + [0] * 19])
    assert batches == [24]
    batches.clear()
    model.encode([[1] * 20] * 120)
    assert sum(batches) == 2400 and max(batches) <= 1024


@pytest.mark.parametrize("name", ["relu", "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "quick_gelu", "silu"])
def test_activations_are_the_originals(name: str, tmp_path: Path) -> None:
    source = encoder("bert", "ForMaskedLM", hidden_act=name)
    ids = random_ids(source, 6)
    hidden = expected_hidden(source, ids)
    with engine.load(source.write(tmp_path)) as model:
        assert np.abs(model.encode([ids])[0] - hidden).max() < CLOSE
        assert np.abs(model.logits([ids])[0] - oracle.task_logits(source.config, source.tensors, hidden)).max() < 2 * CLOSE


def test_the_masked_head_of_xlm_r_is_exact_gelu_whatever_the_layers_have(tmp_path: Path) -> None:
    source = encoder("xlm-roberta", "ForMaskedLM", hidden_act="gelu_new")
    ids = random_ids(source, 6)
    with engine.load(source.write(tmp_path)) as model:
        expected = oracle.task_logits(source.config, source.tensors, expected_hidden(source, ids))
        assert np.abs(model.logits([ids])[0] - expected).max() < 2 * CLOSE


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_of_its_own(kind: str, tmp_path: Path) -> None:
    source = encoder(kind, "ForMaskedLM", tie_word_embeddings=False)
    ids = random_ids(source, 6)
    with engine.load(source.write(tmp_path)) as model:
        expected = oracle.task_logits(source.config, source.tensors, expected_hidden(source, ids))
        assert np.abs(model.logits([ids])[0] - expected).max() < 2 * CLOSE


def test_pooling(bert: tuple[engine.Model, Source]) -> None:
    model, source = bert
    ids, mask = [random_ids(source, 5), random_ids(source, 5, 9)], [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    hidden = model.encode(ids, mask)
    assert np.abs(model.encode(ids, mask, pooling="mean") - [hidden[0, :3].mean(0), hidden[1].mean(0)]).max() < 1e-6
    assert np.array_equal(model.encode(ids, mask, pooling="cls"), hidden[:, 0])


def test_an_engine_directory_gives_the_same(bert: tuple[engine.Model, Source], tmp_path: Path) -> None:
    model, source = bert
    model.save(tmp_path / "saved")
    ids = random_ids(source, 9)
    with engine.load(tmp_path / "saved", backend=model.explain().backend, dtype="float32", check=True) as again:
        assert again.spec == model.spec
        assert np.array_equal(again.logits([ids]), model.logits([ids]))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near(dtype: str, bert: tuple[engine.Model, Source], tmp_path: Path) -> None:
    model, source = bert
    model.save(tmp_path / "saved")
    ids = random_ids(source, 21)
    with engine.load(tmp_path / "saved", dtype=dtype) as half:
        found, expected = half.logits([ids]), model.logits([ids])
        assert 0 < np.abs(found - expected).max() < 0.15 * np.abs(expected).max()


WRONG: dict[str, tuple[Callable[[engine.Model], Any], str]] = {
    "too long": (lambda m: m.encode([[1] * 24]), r"ids\[0\]: expected at most 23 tokens, the model's positions, found 24"),
    "nothing seen": (lambda m: m.encode([[1, 2], [1, 2]], [[1, 1], [0, 0]]), r"attention_mask\[1\]: expected at least one token to see"),
    "mask of another shape": (lambda m: m.encode([[1, 2]], [[1, 1, 1]]), r"attention_mask\[0\]: expected 2 numbers"),
    "mask of other rows": (lambda m: m.encode([[1, 2]], [[1, 1], [1, 1]]), "a row for each of 1 sequences"),
    "mask of text": (lambda m: m.encode([[1, 2]], ["ab"]), r"attention_mask\[0\]"),
    "mask of nothing": (lambda m: m.encode([[1, 2]], 7), "attention_mask"),
    "mask of two": (lambda m: m.encode([[1, 2]], [[1, 2]]), r"attention_mask\[0\]\[1\]: expected 0 or 1, found 2"),
    "mask of NaN": (lambda m: m.encode([[1, 2]], [[1.0, float("nan")]]), r"attention_mask\[0\]\[1\]: expected 0 or 1, found nan"),
    "unknown type": (lambda m: m.encode([[1, 2]], None, [[0, 2]]), r"token_type_ids\[0\]\[1\]: expected 0 or 1, found 2"),
    "unknown token": (lambda m: m.encode([[1, 41]]), r"ids\[0\]\[1\]: expected a token id from 0 to 40"),
    "no tokens": (lambda m: m.encode([[]]), "at least one token id"),
    "unknown pooling": (lambda m: m.encode([[1]], pooling="max"), "pooling: expected None, mean or cls"),
    "score": (lambda m: m.score([[1, 2]]), "score: expected a causal language model, found an encoder, task token_classification"),
    "log_probs": (lambda m: m.log_probs([[1, 2]]), "log_probs: expected a causal language model"),
    "generate": (lambda m: m.generate([1, 2]), "generate: expected a causal language model"),
    "stream": (lambda m: m.stream([1, 2]), "generate: expected a causal language model"),
    "forward": (lambda m: m.forward([[1] * 24]), "at most 23 tokens"),
}


@pytest.mark.parametrize("call", WRONG)
def test_wrong_calls(call: str, bert: tuple[engine.Model, Source]) -> None:
    function, message = WRONG[call]
    with pytest.raises(InputError, match=message):
        function(bert[0])


def test_forward_is_the_backends_own_and_differentiable(torch_bert: tuple[engine.Model, Source]) -> None:
    torch = pytest.importorskip("torch")
    model, _ = torch_bert
    ids, mask = [[3, 4, 5, 6], [7, 8, 9, 1]], [[1, 1, 1, 1], [1, 0, 1, 0]]
    found = model.forward(ids, mask)
    assert isinstance(found, torch.Tensor) and np.abs(found.numpy() - model.logits(ids, mask)).max() < 1e-6


def test_the_gradient_of_head_factors_is_that_of_finite_differences(torch_bert: tuple[engine.Model, Source], tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    model, source = torch_bert
    runner: Any = model._runner
    sequences, _ = model._visible([random_ids(source, 5), random_ids(source, 9)], None, None, "test")
    batch = bidirectional_batch([sequence.rows for sequence in sequences], "logits")

    def loss(factors: list[Any]) -> Any:
        return runner.forward_bidirectional(batch, factors).logsumexp(-1).sum()

    factors = [torch.ones(3, requires_grad=True) for _ in range(3)]
    loss(factors).backward()
    step = 1e-2
    for layer, head in ((0, 1), (2, 0)):
        moved = [torch.ones(3) for _ in range(3)], [torch.ones(3) for _ in range(3)]
        moved[0][layer][head] += step
        moved[1][layer][head] -= step
        slope = (loss(moved[0]) - loss(moved[1])) / (2 * step)
        assert abs(float(slope - factors[layer].grad[head])) < 2e-3 * max(1.0, abs(float(slope)))
    masked = [torch.from_numpy(row) for row in source.mask(PRUNED)]
    with engine.load(source.write(tmp_path / "dense"), heads=source.mask(PRUNED)) as pruned:
        expected = pruned.logits([random_ids(source, 5)])[0]
    assert np.abs(runner.forward_bidirectional(batch, masked)[:5].numpy() - expected).max() < 5e-6


def test_positions_of_xlm_r_start_behind_the_pad_token(tmp_path: Path) -> None:
    source = encoder("xlm-roberta")
    with engine.load(source.write(tmp_path)) as model:
        assert model.encode([[5] * 21]).shape == (1, 21, 12)
        assert model.encode([[5] * 21 + [1] * 9]).shape == (1, 30, 12)  # pad tokens take no position
        with pytest.raises(InputError, match="at most 21 tokens, the model's positions, found 22"):
            model.encode([[5] * 22])


def test_a_pooled_head_needs_its_first_token(tmp_path: Path) -> None:
    with engine.load(encoder("bert", "ForSequenceClassification").write(tmp_path)) as model:
        with pytest.raises(InputError, match=r"attention_mask\[0\]\[0\]: expected 1: the head reads the first token, found 0"):
            model.logits([[1, 2]], [[0, 1]])
        assert model.logits([[1, 2], [3, 4]]).shape == (2, 5)


def test_cost_is_what_torch_counts(tmp_path: Path) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    source = encoder()
    model = engine.load(source.write(tmp_path), backend="torch")
    for rows in (2, 9, 23):  # torch multiplies a single key elementwise and does not count it
        with FlopCounterMode(display=False) as counter:
            model.logits([random_ids(source, rows)])
        assert counter.get_total_flops() == model.cost(rows=rows).prefill().executed == model.cost(rows=rows).prefill().needed
    assert model.cost().kv_bytes == 0


def test_a_base_layer_has_the_published_size_and_work() -> None:
    """Per layer of 768, h heads of 64, width 3072: 196,800 h + 4,726,272 parameters, h · 64 · (3072 + 2n) + 4,718,592 products a token."""
    attention = replace(encoder_attention(), source_heads=12, kept=tuple(range(5)), kv_of=tuple(range(5)), head_dim=64)
    layer = LayerSpec(attention, FeedForward(3072, "gelu", False, True), "layer", False, 1e-12, 0.0)
    spec = ModelSpec(768, 30, (layer,), Embedding((Cluster(30, 768, False),), 1.0, 512, 0, 2, True), None, "hidden").check()
    cost = model_cost(spec, rows=128)
    assert cost.layers[0].parameters == 196_800 * 5 + 4_726_272
    assert cost.layers[0].prefill.needed == 2 * 128 * (5 * 64 * (3072 + 2 * 128) + 4_718_592)


def encoder_attention() -> AttentionSpec:
    return AttentionSpec(
        source_heads=1,
        kept=(0,),
        kv_of=(0,),
        head_dim=1,
        position=Absolute(),
        persistent=0,
        causal=False,
        sees_self=True,
        window=None,
        segment=None,
        start="empty",
        spans=None,
        span_ramp=None,
        bias=True,
        output_bias=True,
        scaled=False,
    )


@pytest.mark.parametrize("change", [{"persistent": 2}, {"window": 5}, {"position": Rotary()}])
def test_bidirectional_variants_nothing_runs_are_refused_by_name(change: dict[str, Any]) -> None:
    layer = LayerSpec(replace(encoder_attention(), **change), None, "layer", False, 1e-12, 0.0)
    spec = ModelSpec(4, 30, (layer,), Embedding((Cluster(30, 4, False),), 1.0, 9), None, "hidden").check()
    with pytest.raises(Unsupported, match=r"bidirectional attention with a window|Rotary"):
        compile_stack(spec)
