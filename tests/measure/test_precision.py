"""What int8 and bfloat16 cost: perplexity of the trained example on every instruction set, the command line, memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engine
from engine.backends.plan import compile_stack
from engine.backends.runner import Limits, Runner
from engine.errors import BackendUnavailable, InputError
from engine_kernels import backends, native
from engine_kernels.errors import KernelError
from engine_kernels.testing import EPS, difference, tolerance
from tests.backends.test_cpu_runner import ROOT, run_python
from tests.backends.test_oracle_properties import Case, _check_targets, moved
from tests.oracle.model import run
from tests.support import engine_side
from tests.support.command import headcount
from tests.support.int8_weights import rounded_folded, rounded_weights
from tests.support.random_specs import random_checkpoint, random_length

HELD_OUT = ROOT / "examples" / "shakespeare" / "heldout.txt"
PPL_PERCENT = {None: 0.1, "int8": 0.5}  # quantization → largest change of the perplexity, in percent

ON_ONE = """
import json, os, engine
from pathlib import Path
from engine.measure.precision import USUAL, Precision, compare_precisions
text = Path("examples/shakespeare/heldout.txt").read_text(encoding="utf-8")
found = {}
for name in ("dense", "gated"):
    path = Path(os.environ["EXAMPLE"], name)
    load = lambda p: engine.load(path, backend="cpu", threads=1, dtype=p.dtype, quantization=p.quantization)
    lines = compare_precisions(load, lambda m: m.score([m.tokenizer.encode(text)]), [*USUAL, Precision("bfloat16", "int8")])
    found[name] = [line.to_dict() for line in lines]
    found["instruction_set"] = load(Precision()).explain().runner["instruction_set"]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained models, dense and gated, converted."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("example")
    for name in ("dense", "gated"):
        engine.convert(ROOT / "examples" / "shakespeare" / f"{name}.ckpt", folder / name)
    return folder


@pytest.mark.parametrize("name", native.instruction_sets())
def test_perplexity_of_the_trained_example(name: str, example: Path) -> None:
    done = run_python(ON_ONE, HEADCOUNT_CPU_ISA=name, EXAMPLE=str(example))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["instruction_set"] == name
    for model in ("dense", "gated"):
        exact, *others = found[model]
        assert (exact["dtype"], exact["quantization"], exact["nll_change"]) == ("float32", None, 0)
        assert [line["quantization"] for line in others] == [None, "int8", "int8"]
        for line in others:
            allowed = PPL_PERCENT[line["quantization"]]
            assert 0 < abs(line["ppl_percent"]) <= allowed, f"{name}, {model}: {line}"
            assert line["ppl_percent"] == pytest.approx(100 * (line["ppl"] / exact["ppl"] - 1), abs=1e-9)
            assert line["nll_percent"] == pytest.approx(100 * (line["nll"] / exact["nll"] - 1), abs=1e-9)


def int8_case(seed: int) -> Case:
    """A random model and what an int8 run of it may give: the one rule (engine_kernels.testing) in bfloat16.

    o: the float64 oracle on the dequantised weights. p: its loops in float32 on the same weights moved by one eps of bfloat16. A unit that
    also rounds rows of activations to int8 has its o on those rounded rows, which depend on its own sums; they keep within this rule too
    (test_rows_rounded_to_int8_keep_to_the_same_rule), so one o serves every unit.
    """
    checkpoint = random_checkpoint(seed)
    ids = np.random.default_rng([seed, 2]).integers(0, checkpoint.spec.vocab, random_length(checkpoint))
    spec, weights = rounded_weights(checkpoint)
    exact = run(spec, weights, ids)
    plain = run(spec, moved(weights, seed, EPS["bfloat16"]), ids, dtype="float32")
    allowed = tolerance(plain.log_probs, exact.log_probs, "bfloat16")
    return Case(checkpoint, ids, exact, allowed, tolerance(plain.streams, exact.streams, "bfloat16"))


INT8_SEEDS = range(24)  # every dialect, norm and start twice
INT8_ON_ONE = """
import numpy as np
from engine.backends.cpu import build
from engine.backends.fold import fold
from engine.backends.plan import compile_stack
from engine.backends.runner import Limits
from tests.support import engine_side
from tests.measure.test_precision import INT8_SEEDS, check_int8, int8_case
for seed in INT8_SEEDS:
    case = int8_case(seed)
    runner = build(compile_stack(case.checkpoint.spec), fold(case.checkpoint), Limits("float32", threads=1, quantization="int8"))
    check_int8(case, runner)
print(runner.describe()["instruction_set"])
"""


def check_int8(case: Case, runner: Runner) -> None:
    """Whole, token by token, ragged chunks in a batch, targets only, and the residual stream of every layer."""
    seed = case.checkpoint.provenance["seed"]
    streams: dict[int, np.ndarray] = {}
    case.check(engine_side.whole(runner, case.ids, tap=lambda layer, rows: streams.__setitem__(layer, rows.copy())), "whole")
    case.check(engine_side.one_by_one(runner, case.ids), "token by token")
    for result in engine_side.ragged(runner, [case.ids, case.ids[:5]], np.random.default_rng(seed)):
        case.check(result, "ragged chunks")
    for layer, rows in streams.items():
        assert difference(rows, case.exact.streams[layer + 1]) <= case.allowed_streams, f"seed {seed}, stream after layer {layer}"
    _check_targets(case, runner, np.random.default_rng(seed))


@pytest.mark.parametrize("name", native.instruction_sets())
def test_int8_keeps_to_the_oracle(name: str) -> None:
    done = run_python(INT8_ON_ONE, HEADCOUNT_CPU_ISA=name)
    assert (done.returncode, done.stdout) == (0, f"{name}\n"), done.stderr


def test_rows_rounded_to_int8_keep_to_the_same_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain PyTorch on the dequantised weights, every row that enters a product rounded: what a unit with integer products may do."""
    torch = pytest.importorskip("torch")
    from engine.backends.torch.runner import build
    from engine_kernels import reference

    def int8_rows(x: Any) -> Any:
        scale = x.abs().amax(dim=-1, keepdim=True) / 127
        return torch.where(scale > 0, torch.round(x / scale) * scale, 0)

    exact_linear, exact_attend, exact_cached = reference.linear, reference.attend, reference.attend_cached
    monkeypatch.setattr(reference, "linear", lambda x, *rest: exact_linear(int8_rows(x), *rest))
    monkeypatch.setattr(reference, "attend", lambda query, *rest: exact_attend(int8_rows(query), *rest))
    monkeypatch.setattr(reference, "attend_cached", lambda query, *rest: exact_cached(int8_rows(query), *rest))
    for seed in INT8_SEEDS[:12]:
        case = int8_case(seed)
        check_int8(case, build(compile_stack(case.checkpoint.spec), rounded_folded(case.checkpoint), Limits("float32", threads=1)))


# --- what runs and what it takes


def test_explain_says_what_is_int8(example: Path) -> None:
    with engine.load(example / "gated", quantization="int8", dtype="bf16") as model:
        explained = model.explain()
    assert (explained.backend, explained.dtype, explained.quantization) == ("cpu", "bfloat16", "int8")
    assert "dtype bfloat16, quantization int8" in str(explained)
    weights, rest = explained.runner["weights"], explained.runner["not_quantised"]
    assert "int8" in weights and "persistent keys" in weights and "bfloat16: embedding" in rest
    with engine.load(example / "gated") as model:
        explained = model.explain()
    assert explained.quantization is None and "int8" not in str(explained) and "not_quantised" not in explained.runner


def test_a_backend_without_int8_is_refused_and_the_reason_kept(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendUnavailable, match="torch: runs no int8 weights; backend triton or cpu does"):
        engine.load(example / "gated", quantization="int8", backend="torch")
    ready = tuple((name, (lambda wanted: None) if name == "cuda" else probe) for name, probe in backends.TABLE)
    monkeypatch.setattr(backends, "TABLE", ready)
    choice = backends.resolve("auto", backends.Wanted(quantization="int8"))
    assert choice.name == "cpu"
    refused = choice.refusals[0]
    assert (refused.name, refused.reason) == ("cuda", "runs no int8 weights; backend triton or cpu does")


def test_an_encoder_runs_in_int8_too() -> None:
    source = Path(__file__).parents[1] / "fixtures" / "hf-bert-tokcls" / "pruned"
    ids = np.random.default_rng(0).integers(0, 100, (3, 17))
    with engine.load(source, dtype="float32") as exact, engine.load(source, quantization="int8") as narrow:
        expected, found = exact.logits(ids), narrow.logits(ids)
        held = [model.explain().runner["weight_bytes"] for model in (exact, narrow)]
    assert 0 < np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    assert held[1] < held[0]


@pytest.mark.parametrize("value", ["int4", "INT8", "", 8, True, ["int8"]], ids=repr)
def test_an_unknown_quantization_is_one_clear_error(value: Any, example: Path) -> None:
    with pytest.raises(InputError, match="quantization: expected None or int8") as caught:
        engine.load(example / "gated", quantization=value)
    assert len(caught.value.problems) == 1
    with pytest.raises(KernelError, match="quantization"):
        native.NativeModel(4, "float32", 1, str(value))


RESIDENT = """
import numpy as np
from engine_kernels.native import NativeModel
from engine_kernels.shapes import LayerShape

def resident():
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))

H, WIDTH = 1024, 4096
ones = np.ones(H, np.float32)
draw = np.random.default_rng(0).standard_normal((WIDTH, H), np.float32)
arrays = {name: ones for name in ("attention_norm", "attention_norm_bias", "feed_forward_norm", "feed_forward_norm_bias")}
layers = [arrays | {"feed_forward.up": draw + i, "feed_forward.down": draw.reshape(H, WIDTH) - i - 1} for i in range(3)]  # none alike
shape = LayerShape(None, WIDTH, "relu", True, 1e-5)
for dtype, quantization in (("float32", None), ("bfloat16", None), ("float32", "int8")):
    model, before = NativeModel(H, dtype, 1, quantization), resident()
    for layer in layers:
        model.add_layer(shape, layer)
    print((resident() - before) / (3 * 2 * H * WIDTH))
    kept = model
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no resident size to read on this system")
def test_int8_weights_take_a_quarter_of_float32() -> None:
    """Bytes of memory per weight as the system counts them, after packing."""
    done = run_python(RESIDENT)
    assert done.returncode == 0, done.stderr
    exact, half, quarter = map(float, done.stdout.split())
    assert exact == pytest.approx(4, rel=0.05) and half == pytest.approx(2, rel=0.05) and quarter == pytest.approx(1, rel=0.05)


# --- the command line


def test_score_compares_precisions(example: Path) -> None:
    done = headcount("score", example / "gated", HELD_OUT, "--compare", "--json")
    assert (done.status, done.err) == (0, "")
    found = json.loads(done.out)
    exact, half, quantised = found["precisions"]
    assert found["tokens"] == 2047
    assert [p["quantization"] for p in found["precisions"]] == [None, None, "int8"]
    assert (exact["dtype"], half["dtype"]) == ("float32", "bfloat16")
    for line, flags in ((exact, ["--dtype", "fp32"]), (half, ["--dtype", "bf16"]), (quantised, ["--quantization", "int8"])):
        alone = json.loads(headcount("score", example / "gated", HELD_OUT, "--json", *flags).out)
        assert (line["nll"], line["ppl"]) == pytest.approx((alone["nll"], alone["ppl"]), rel=1e-12)
        assert line["nll_change"] == pytest.approx(alone["nll"] - exact["nll"], abs=1e-12)
    said = headcount("score", example / "gated", HELD_OUT, "--compare", "--quantization", "int8", "--dtype", "bf16").out
    assert "2,047 tokens" in said and "int8, rest bfloat16" in said and f"{exact['nll']:.6f}" in said and "%" in said


def test_a_precision_that_cannot_run_is_a_line_unless_it_was_named(example: Path) -> None:
    pytest.importorskip("torch")
    done = headcount("score", example / "gated", HELD_OUT, "--compare", "--backend", "torch", "--json")
    exact, half, quantised = json.loads(done.out)["precisions"]
    assert done.status == 0 and exact["refused"] is None and half["nll"] is not None
    assert quantised["nll"] is None and "torch: runs no int8 weights" in quantised["refused"]
    done = headcount("score", example / "gated", HELD_OUT, "--compare", "--backend", "torch", "--quantization", "int8")
    assert (done.status, done.out) == (1, "") and "torch: runs no int8 weights" in done.err


def test_verify_on_a_text_compares_precisions(example: Path) -> None:
    pytest.importorskip("torch")
    source = ROOT / "examples" / "shakespeare" / "gated.ckpt"
    found = json.loads(headcount("verify", example / "gated", "--against", source, "--text", HELD_OUT, "--json").out)
    assert found["passed"] and [p["quantization"] for p in found["precisions"]] == [None, None, "int8"]
    assert 0 < abs(found["precisions"][2]["ppl_percent"]) <= PPL_PERCENT["int8"]
    done = headcount("verify", example / "gated", "--against", source, "--quantization", "int8")
    assert done.status == 1 and "BEYOND 0.0002" in done.out and "precision" not in done.out


@pytest.mark.parametrize("verb", [["score", "-"], ["generate", "--prompt", "A"], ["verify", "--against", "x"]], ids=lambda verb: verb[0])
def test_the_command_refuses_an_unknown_quantization(verb: list[str], example: Path) -> None:
    done = headcount(verb[0], example / "gated", *verb[1:], "--quantization", "int4", given="abc")
    assert (done.status, done.out) == (1, "") and done.err == "InputError: quantization: expected None or int8, found 'int4'\n"


def test_generate_runs_in_int8(example: Path) -> None:
    done = headcount("generate", example / "gated", "--prompt", "ROMEO:", "--max-new-tokens", "5", "--quantization", "int8")
    assert (done.status, done.err) == (0, "") and done.out.startswith("ROMEO:") and len(done.out) > len("ROMEO:\n")
