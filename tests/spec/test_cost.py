"""Cost against the published numbers, against torch's own FLOP counter on the reference runner, and against itself."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.checkpoint import Checkpoint, save
from engine.errors import InputError
from engine.spec import AttentionSpec, Labels, ModelSpec
from engine.spec.cost import PARTS, Cost, Flops, model_cost
from engine.spec.cost_parts import Work, executed_keys, part_of, visible_keys
from tests.support import cost_cases as cases

SPECS = {
    "aiha": cases.aiha((3, 0, 7)),
    "aiha-no-heads": cases.aiha((0, 0)),
    "aiha-segments": cases.aiha((1, 8), segment=5, persistent=0),
    "aiha-bias-scale": cases.aiha((5,), window=2, persistent=2, bias=True, scaled=True),
    "fair-spans": cases.fair((3, 8, 0)),
    "fair-feed-forward": cases.fair((1, 7), persistent=0, feed_forward=11, spans=False),
    "transformer-xl": cases.transformer_xl((3, 0, 8)),
    "transformer-xl-segments": cases.transformer_xl((7, 1), segment=9, window=65, bias=True),
    "transformer-xl-window-2": cases.transformer_xl((2,), window=2, width=0),
}


def checkpoint_of(spec: ModelSpec) -> Checkpoint:
    numbers = np.random.default_rng(0)
    return Checkpoint(spec, {name: 0.1 * numbers.standard_normal(shape).astype(np.float32) for name, shape in spec.tensors().items()})


class Counted:
    """The reference runner of a spec, each step's FLOPs counted by torch."""

    def __init__(self, spec: ModelSpec) -> None:
        pytest.importorskip("torch")
        from engine.backends.fold import fold
        from engine.backends.plan import compile_stack
        from engine.backends.runner import Limits
        from engine.backends.torch.runner import build

        self.runner = build(compile_stack(spec), fold(checkpoint_of(spec)), Limits("float32"))

    def step(self, ids: list[list[int]], start: int, slots: list[int]) -> int:
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            self.run(ids, start, slots)
        return counter.get_total_flops()

    def run(self, ids: list[list[int]], start: int, slots: list[int]) -> None:
        from engine.backends.runner import Batch

        count = len(ids)
        batch = Batch(
            ids=np.concatenate([np.asarray(row, np.int64) for row in ids]),
            slots=np.asarray(slots, np.int64),
            starts=np.full(count, start, np.int64),
            lengths=np.asarray([len(row) for row in ids], np.int64),
            want="log_probs",
        )
        self.runner.step(batch)


@pytest.mark.parametrize("rows", [1, 2, 63, 65, 130])
@pytest.mark.parametrize("name", SPECS)
def test_prefill_executed_is_what_torch_counts(name: str, rows: int) -> None:
    spec = SPECS[name]
    counted = Counted(spec)
    found = counted.step([[0] * rows], 0, [counted.runner.open()])
    assert found == pytest.approx(model_cost(spec, rows=rows).prefill().executed, rel=0.01)


@pytest.mark.parametrize("name", SPECS)
def test_decode_needed_is_what_torch_counts_at_every_position(name: str) -> None:
    spec = SPECS[name]
    counted = Counted(spec)
    slots = [counted.runner.open(), counted.runner.open()]
    counted.step([[1] * 100] * 2, 0, slots)
    early = counted.step([[1]] * 2, 100, slots)
    counted.step([[1] * 899] * 2, 101, slots)
    late = counted.step([[1]] * 2, 1000, slots)
    assert early == late == pytest.approx(model_cost(spec, batch=2).decode.needed, rel=0.01)


def test_products_over_a_single_key_are_counted_though_torch_multiplies_them_elementwise() -> None:
    spec = cases.aiha((5,), window=1, persistent=1)
    counted = Counted(spec)
    found = counted.step([[0]], 0, [counted.runner.open()])
    values_of_one_key_and_one_persistent_vector = 2 * 5 * 6 * 2
    assert found + values_of_one_key_and_one_persistent_vector == model_cost(spec).decode.needed


@pytest.mark.parametrize(("rows", "batch"), [(1, 1), (65, 1), (192, 3)])
@pytest.mark.parametrize("name", SPECS)
def test_activation_peak_is_within_a_factor_of_two_of_the_reference(name: str, rows: int, batch: int) -> None:
    spec = SPECS[name]
    counted = Counted(spec)
    slots = [counted.runner.open() for _ in range(batch)]
    found = peak_bytes(lambda: counted.run([[0] * rows] * batch, 0, slots))
    assert 0.5 < found / model_cost(spec, rows=rows, batch=batch).activation_bytes < 2


def peak_bytes(run: Callable[[], None]) -> int:
    """The most bytes of tensors made by `run` that were alive at once."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Meter(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.alive: dict[int, int] = {}
            self.peak = 0

        def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
            result = function(*arguments, **(options or {}))
            given = {t.untyped_storage().data_ptr() for t in tree_leaves((arguments, options)) if isinstance(t, torch.Tensor)}
            for tensor in tree_leaves(result):
                storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
                if storage is None or storage.data_ptr() in given or storage.data_ptr() in self.alive:
                    continue
                self.alive[storage.data_ptr()] = storage.nbytes()
                weakref.finalize(storage, self.alive.pop, storage.data_ptr(), None)
            self.peak = max(self.peak, sum(self.alive.values()))
            return result

    with Meter() as meter:
        run()
    return meter.peak


def test_embedding_follows_the_tokens_of_the_text() -> None:
    spec = cases.aiha((1,))
    counted = Counted(spec)
    ids = [0] * 5 + [20] * 3 + [31] * 9  # clusters start at 0, 20 and 31
    found = counted.step([ids], 0, [counted.runner.open()])
    told = model_cost(spec, rows=17, token_counts=(5, 3, 9))
    assert found == told.prefill().executed
    assert model_cost(spec, rows=17).prefill().executed - found == 2 * 24 * (17 * 24 - (5 * 24 + 3 * 12 + 9 * 6))


# params = h (5 d dh + 2 N dh + 2 dh) + 3d, multiply-adds = h dh (4d + 2N + 3(M + 1)); arXiv 2110.03252, d 512, dh 64, N 2048, M 192
@pytest.mark.parametrize("heads", range(9))
def test_all_attention_layer_has_the_published_size(heads: int) -> None:
    layer = model_cost(cases.s1((heads,))).layers[0]
    assert layer.parameters == 426_112 * heads + 1_536
    assert layer.decode == Flops(2 * 430_272 * heads, 2 * 430_272 * heads)
    assert model_cost(cases.s1((heads,)), rows=300).layers[0].prefill.needed == 300 * 2 * 430_272 * heads


# the baseline keeps its feed-forward: multiply-adds = h dh (4d + 3(M + 1)) + 2dF; content and position biases stored per layer: + 2 dh h
@pytest.mark.parametrize("heads", range(9))
def test_transformer_xl_layer_has_the_published_size(heads: int) -> None:
    layer = model_cost(cases.s1((heads,), persistent=0, feed_forward=2048)).layers[0]
    assert layer.parameters == (163_840 + 128) * heads + 2_102_272
    assert layer.decode.needed == 2 * (168_128 * heads + 2_097_152)


@pytest.mark.parametrize(
    ("kept", "layer_parameters", "mega_macs", "baseline_mega_macs"),
    [(128, 54_566_912, 55.07, 55.07), (106, 45_192_448, 45.61, 51.38), (87, 37_096_320, 37.43, 48.18), (59, 25_165_184, 25.39, 43.47)],
)
def test_published_pruned_models(kept: int, layer_parameters: int, mega_macs: float, baseline_mega_macs: float) -> None:
    cost = model_cost(cases.s1(cases.S1_LISTS[kept]))
    baseline = model_cost(cases.s1(cases.S1_LISTS[kept], persistent=0, feed_forward=2048))
    assert sum(layer.heads for layer in cost.layers) == kept
    assert sum(layer.parameters for layer in cost.layers) == layer_parameters
    assert sum(layer.decode.needed for layer in cost.layers) == 2 * 430_272 * kept
    assert round(sum(layer.decode.needed for layer in cost.layers) / 2e6, 2) == mega_macs
    assert round(sum(layer.decode.needed for layer in baseline.layers) / 2e6, 2) == baseline_mega_macs


def test_published_model_as_a_whole() -> None:
    cost = model_cost(cases.s1(cases.S1_LISTS[128]), dtype="bfloat16")
    parts = {part.name: part for part in cost.parts}
    assert round(cost.parameters / 1e6, 2) == 74.17
    assert cost.weight_bytes == 2 * cost.parameters
    assert parts["vocabulary"].decode.needed == 2 * (
        20000 * 512 + 20000 * 128 + 160000 * 32 + 67735 * 8 + 512 * (512 + 128 + 32 + 8) + 3 * 512
    )
    assert parts["embedding"].decode.needed == 2 * 512 * 512  # every token in the first cluster
    assert cost.kv_bytes_per_token == 16 * 2 * 8 * 64 * 2
    assert cost.kv_bytes == 193 * cost.kv_bytes_per_token


def test_fair_layer_has_the_published_size() -> None:
    spec = cases.fair((3,), window=31, persistent=7)
    layer = model_cost(spec).layers[0]
    assert layer.parameters == 3 * (4 * 20 * 10 + 2 * 7 * 10) + 2 * 20
    assert layer.decode.needed == 2 * 3 * 10 * (4 * 20 + 2 * 7 + 3 * 31)


@pytest.mark.parametrize(
    ("attention", "row_keys"),
    [
        (cases.attention(1, window=3), [3, 3, 3, 3, 3, 3, 3]),
        (cases.attention(1, window=3, zeros=False), [1, 2, 3, 3, 3, 3, 3]),
        (cases.attention(1, window=3, zeros=False, sees_self=False), [0, 1, 2, 3, 3, 3, 3]),
        (cases.attention(1, window=3, segment=3), [3, 4, 5, 3, 4, 5, 3]),
        (cases.attention(1, window=3, segment=3, zeros=False), [1, 2, 3, 3, 4, 5, 3]),
        (cases.attention(1, window=None, zeros=False), [1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_visible_keys_row_by_row(attention: AttentionSpec, row_keys: list[int]) -> None:
    for rows in range(1, 8):
        assert visible_keys(attention, Work(rows, 64)) == sum(row_keys[:rows])
        assert executed_keys(attention, Work(rows, 1)) >= sum(row_keys[:rows])
    assert visible_keys(attention, Work(1, 1, context=50)) == {None: 50}.get(attention.reach, attention.reach)


def test_tiles_decide_what_is_executed_and_nothing_else() -> None:
    spec = cases.s1((8,))
    costs = {tile_rows: model_cost(spec, rows=192, tile_rows=tile_rows) for tile_rows in (1, 64, 192)}
    assert len({cost.prefill().needed for cost in costs.values()}) == 1
    assert costs[1].prefill().executed == costs[1].prefill().needed
    content = {tile_rows: next(p for p in cost.parts if p.name == "content").prefill for tile_rows, cost in costs.items()}
    assert content[64] == Flops(2 * 8 * 64 * 192 * 193, 2 * 8 * 64 * 192 * (193 + 63))
    assert content[192].executed == 2 * 8 * 64 * 192 * (193 + 191)
    assert len({cost.decode for cost in costs.values()}) == 1


@pytest.mark.parametrize("name", SPECS)
def test_parts_layers_and_tensors_add_up(name: str) -> None:
    spec = SPECS[name]
    cost = model_cost(spec, rows=65, dtype="float16")
    stored = {tensor: prod(shape) for tensor, shape in spec.tensors().items()}
    assert cost.weight_bytes == 2 * sum(stored.values())
    assert cost.parameters == sum(stored.values()) - stored.get("position.frequencies", 0)
    assert [part.name for part in cost.parts] == list(PARTS)
    for layer in cost.layers:
        own = [tensor for tensor in stored if tensor.startswith(f"layers.{layer.index}.")]
        assert layer.parameters == sum(stored[tensor] for tensor in own)
        assert {part_of(tensor) for tensor in own} <= {part.name for part in layer.parts}
    whole = [layer.total for layer in cost.layers] + list(cost.outside)
    assert cost.prefill().executed == sum(part.prefill.executed for part in whole)
    assert cost.decode.needed == sum(part.decode.needed for part in whole)


@pytest.mark.parametrize("name", SPECS)
def test_weight_bytes_are_those_of_the_file(name: str, tmp_path: Path) -> None:
    save(checkpoint_of(SPECS[name]), tmp_path / "saved")
    raw = (tmp_path / "saved" / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    tensors = {key: entry for key, entry in json.loads(raw[8 : 8 + length]).items() if key != "__metadata__"}
    assert sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in tensors.values()) == model_cost(SPECS[name]).weight_bytes


def test_needed_work_and_memory_of_layers_are_proportional_to_heads() -> None:
    costs = [model_cost(cases.s1((heads,))) for heads in range(9)]
    for heads, cost in enumerate(costs):
        layer = cost.layers[0]
        assert 8 * layer.prefill.needed == heads * costs[8].layers[0].prefill.needed
        assert 8 * layer.kv_bytes == heads * costs[8].layers[0].kv_bytes


def test_batch_multiplies_work_and_not_weights() -> None:
    one, four = model_cost(SPECS["fair-spans"], batch=1), model_cost(SPECS["fair-spans"], batch=4)
    assert four.prefill() == one.prefill() * 4
    assert four.decode == one.decode * 4
    assert (four.weight_bytes, four.kv_bytes) == (one.weight_bytes, one.kv_bytes)
    assert four.activation_bytes > one.activation_bytes


def test_prefill_of_other_rows_keeps_the_settings() -> None:
    spec = SPECS["transformer-xl"]
    cost = model_cost(spec, rows=7, batch=3, tile_rows=5, token_counts=(1, 2, 3))
    assert cost.prefill(130) == model_cost(spec, rows=130, batch=3, tile_rows=5, token_counts=(1, 2, 3)).prefill()
    assert cost.prefill(7) == cost.prefill()


def test_encoder_head_counts_tokens_or_the_pooled_one() -> None:
    def labels_cost(pooled: bool) -> Cost:
        spec = cases.transformer_xl((1,))
        return model_cost(ModelSpec(16, 65, spec.layers, spec.embedding, Labels(9, pooled), "token_classification"), rows=10)

    flops = [next(p for p in labels_cost(pooled).parts if p.name == "vocabulary").prefill.needed for pooled in (False, True)]
    assert flops == [2 * 10 * 16 * 9, 2 * 16 * 9]


def test_to_dict_is_json_with_every_figure() -> None:
    value = json.loads(json.dumps(model_cost(SPECS["fair-spans"]).to_dict()))
    assert set(value) == {"settings", "total", "parts", "layers"}
    assert value["total"]["decode"]["needed"] == sum(part["decode"]["needed"] for part in value["parts"].values())
    assert [layer["heads"] for layer in value["layers"]] == [3, 8, 0]
    assert value["layers"][2]["kv_bytes"] == 0


def test_all_bad_arguments_are_named_together() -> None:
    with pytest.raises(InputError) as caught:
        model_cost(SPECS["aiha"], dtype="int4", rows=0, batch=-1, tile_rows=True, token_counts=(1, 2))  # type: ignore[arg-type]
    assert [str(problem).split(":")[0] for problem in caught.value.problems] == ["dtype", "rows", "batch", "tile_rows", "token_counts"]
    with pytest.raises(InputError):
        model_cost(SPECS["aiha"], token_counts=(0, 0, 0))
    with pytest.raises(InputError):
        model_cost(SPECS["aiha"], token_counts=(1, float("nan"), 0))


@pytest.mark.parametrize("name", ["aiha", "fair-feed-forward", "transformer-xl"])
def test_int8_is_a_byte_a_number_and_a_scale_a_row(name: str) -> None:
    spec, saved = SPECS[name], 0
    plain, narrow = model_cost(spec), model_cost(spec, quantization="int8")
    for tensor, shape in spec.tensors().items():
        last = tensor.split(".")[-1]
        if last in ("query", "key", "value", "output", "persistent_keys", "up", "down", "projection") or tensor.startswith("head."):
            saved += 0 if last.endswith("bias") else 3 * prod(shape) - 4 * prod(shape[:-1])
        elif last == "persistent_values":
            saved += 3 * prod(shape) - 4 * shape[0] * shape[2]
    assert saved > 0 and plain.weight_bytes - narrow.weight_bytes == saved
    assert narrow.total.parameters == plain.total.parameters and narrow.to_dict()["settings"]["quantization"] == "int8"  # type: ignore[index]
    with pytest.raises(InputError, match="quantization"):
        model_cost(spec, quantization="int4")
