"""The `cpu` backend against the oracle and the published outputs, in every way a model is used; threads, processes, instruction sets."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import engine
from engine.backends.cpu import build
from engine.backends.fold import fold
from engine.backends.plan import compile_stack
from engine.backends.runner import Limits, Runner
from engine.checkpoint import Checkpoint
from engine.errors import BackendUnavailable, EngineError
from engine_kernels import native
from engine_kernels.testing import difference
from tests.backends.test_oracle_properties import GROUP, SEEDS, Case, _check_targets
from tests.support import engine_side
from tests.support.random_specs import random_checkpoint

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
EXPECTED_WITHIN = 2e-4  # of the published code's own float32


def cpu_runner(checkpoint: Checkpoint, dtype: str = "float32", threads: int | None = 1) -> Runner:
    """The `cpu` backend of a checkpoint."""
    return build(compile_stack(checkpoint.spec), fold(checkpoint), Limits(dtype, threads=threads))


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`code` in a process of its own, in the root of the repository."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("first", range(0, SEEDS, GROUP))
def test_keeps_to_the_oracle(first: int) -> None:
    """Whole, token by token, ragged chunks in a batch, targets only, next token only, and the residual stream of every layer."""
    for seed in range(first, first + GROUP):
        case = Case.draw(seed)
        ids, rng = case.ids, np.random.default_rng([seed, 3])
        runner = cpu_runner(case.checkpoint)
        streams: dict[int, np.ndarray] = {}
        case.check(engine_side.whole(runner, ids, tap=lambda layer, rows, to=streams: to.__setitem__(layer, rows.copy())), "whole")
        case.check(engine_side.one_by_one(runner, ids), "token by token")
        prefix = ids[: int(rng.integers(1, len(ids) + 1))]
        for result, sequence in zip(engine_side.ragged(runner, [ids, prefix, ids], rng), (ids, prefix, ids), strict=True):
            assert len(result) == len(sequence)
            case.check(result, "ragged chunks")
        assert sorted(streams) == list(range(-1, len(case.checkpoint.spec.layers)))
        for layer, rows in streams.items():
            assert difference(rows, case.exact.streams[layer + 1]) <= case.allowed_streams, f"seed {seed}, stream after layer {layer}"
        _check_targets(case, runner, rng)
        last = difference(engine_side.from_next(runner, ids), case.exact.log_probs[-1])
        assert last <= case.allowed, f"next, seed {seed}: {last:.3e}, allowed {case.allowed:.3e}"


def test_bfloat16_keeps_to_the_oracle_on_the_same_rounded_weights() -> None:
    for seed in range(24):
        drawn = random_checkpoint(seed)
        rounded = {name: w.astype(ml_dtypes.bfloat16) for name, w in drawn.weights.items()}
        case = Case.of(replace(drawn, weights=rounded), "bfloat16")
        runner = cpu_runner(case.checkpoint, "bfloat16")
        case.check(engine_side.whole(runner, case.ids), "bfloat16")
        case.check(engine_side.one_by_one(runner, case.ids), "bfloat16, token by token")
        _check_targets(case, runner, np.random.default_rng(seed))


@pytest.mark.parametrize("name", ["aiha-char/checkpoint.ckpt", "aiha-adaptive/checkpoint.ckpt", "fair-pers/checkpoint.pt", "txl/model.pt"])
def test_reproduces_the_published_code(name: str) -> None:
    expected = np.load((FIXTURES / name).with_name("expected.npz"))
    with engine.load(FIXTURES / name, backend="cpu", dtype="float32") as model:
        ids = expected["ids"]
        if "log_probs" in expected:
            wanted = expected["log_probs"]
            assert np.abs(model.log_probs(ids)[:, : wanted.shape[1]] - wanted).max() <= EXPECTED_WITHIN
        if "token_nll" in expected:
            assert np.abs(model.score(ids).token_nll - expected["token_nll"]).max() <= EXPECTED_WITHIN


@pytest.mark.parametrize("name", ["dense", "gated"])
def test_reproduces_the_trained_model(name: str) -> None:
    expected = np.load(FIXTURES / "shakespeare-char" / "expected.npz")
    with engine.load(ROOT / "examples" / "shakespeare" / f"{name}.ckpt", backend="cpu", dtype="float32") as model:
        nll = model.score(expected["ids"]).token_nll
    assert np.abs(nll - expected[f"token_nll_{name}"]).max() <= EXPECTED_WITHIN


@pytest.mark.parametrize("seed", [1, 6, 20, 27])
def test_a_sequence_gives_the_same_bits_whatever_runs_beside_it(seed: int) -> None:
    """Lengths on both sides of every cut: single rows, parts of 256 rows, passes of 1024."""
    checkpoint = random_checkpoint(seed)
    rng = np.random.default_rng(seed)
    sequences = [rng.integers(0, checkpoint.spec.vocab, length) for length in (600, 1, 257, 256, 2, 300, 1, 1, 513)]
    together, alone = cpu_runner(checkpoint), cpu_runner(checkpoint)
    slots = [together.open() for _ in sequences][::-1]
    streams: dict[int, np.ndarray] = {}
    result = engine_side.step(together, sequences, slots, [0] * len(slots), tap=streams.__setitem__).log_probs
    assert result is not None
    starts = np.cumsum([0, *map(len, sequences)])
    for sequence, start in zip(sequences, starts, strict=False):
        own: dict[int, np.ndarray] = {}
        expected = engine_side.whole(alone, sequence, tap=own.__setitem__)
        np.testing.assert_array_equal(result[start : start + len(sequence)], expected)
        for layer, rows in own.items():
            np.testing.assert_array_equal(streams[layer][start : start + len(sequence)], rows, err_msg=f"layer {layer}")
    again = engine_side.step(together, [s[:1] for s in sequences], slots, [len(s) for s in sequences]).log_probs  # all single rows
    for index, sequence in enumerate(sequences):
        slot = alone.open()
        engine_side.step(alone, [sequence], [slot], [0])
        expected = engine_side.step(alone, [sequence[:1]], [slot], [len(sequence)]).log_probs
        np.testing.assert_array_equal(again[index : index + 1], expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("seed", [0, 4, 23])
def test_any_number_of_threads_gives_the_same_bits(seed: int, dtype: str) -> None:
    checkpoint = random_checkpoint(seed)
    ids = np.random.default_rng(seed).integers(0, checkpoint.spec.vocab, 130)
    targets = np.random.default_rng(seed + 1).integers(-1, checkpoint.spec.vocab, 130)
    results = []
    for threads in (1, 2, 3):
        runner = cpu_runner(checkpoint, dtype, threads)
        assert runner.describe()["threads"] == threads
        slot = runner.open()
        nll = engine_side.step(runner, [ids], [slot], [0], "target_nll", targets).nll
        rows = engine_side.ragged(runner, [ids[:40], ids, ids[:7]], np.random.default_rng(9))
        results.append([engine_side.whole(runner, ids), engine_side.one_by_one(runner, ids[:50]), nll, *rows])
    for other in results[1:]:
        for found, expected in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(found, expected)


def test_a_slot_starts_afresh_when_given_out_again_and_when_reset() -> None:
    checkpoint = random_checkpoint(3)
    ids = np.random.default_rng(0).integers(0, checkpoint.spec.vocab, 63)
    runner = cpu_runner(checkpoint)
    first = engine_side.whole(runner, ids)
    np.testing.assert_array_equal(engine_side.whole(runner, ids), first)
    slot = runner.open()
    engine_side.step(runner, [ids[:20]], [slot], [0])
    runner.reset(slot)
    np.testing.assert_array_equal(engine_side.step(runner, [ids], [slot], [0]).log_probs, first)
    with pytest.raises(EngineError, match="position 63"):
        engine_side.step(runner, [ids], [slot], [0])


def test_several_python_threads_share_a_model_and_two_models_a_process() -> None:
    wanted: dict[str, np.ndarray] = {}
    found: dict[tuple[str, int], np.ndarray] = {}
    ids = np.random.default_rng(0).integers(0, 40, (2, 65))
    names = ("dense", "gated")
    models = {n: engine.load(ROOT / "examples" / "shakespeare" / f"{n}.ckpt", backend="cpu", threads=2) for n in names}

    def work(name: str, index: int) -> None:
        for _ in range(3):
            found[name, index] = models[name].log_probs(ids)

    for name, model in models.items():
        wanted[name] = model.log_probs(ids)
    workers = [threading.Thread(target=work, args=(name, index)) for name in names for index in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 6
    for (name, _), log_probs in found.items():
        np.testing.assert_array_equal(log_probs, wanted[name])
    assert not np.array_equal(wanted["dense"], wanted["gated"])


def test_counters_say_what_ran() -> None:
    checkpoint = random_checkpoint(0)
    runner = cpu_runner(checkpoint)
    heads = sum(layer.attention.heads for layer in checkpoint.spec.layers)
    persistent = checkpoint.spec.layers[0].attention.persistent > 0

    def calls(rows: int) -> Counter[str]:
        before = Counter(runner.describe()["calls"])
        engine_side.whole(runner, np.zeros(rows, np.int64))
        ran = Counter(runner.describe()["calls"]) - before
        assert {name.split(".")[0] for name in ran} == {runner.describe()["instruction_set"]}
        return Counter({name.split(".")[1]: count for name, count in ran.items()})

    several, one = calls(2), calls(1)
    assert several["attend_rows"] == heads and not several["attend_ring"] and not several["attend_persistent"]
    assert one["attend_ring"] == heads and one["attend_persistent"] == persistent * heads and not one["attend_rows"]
    assert all(ran["linear"] and ran["layer_norm"] and ran["log_sum_exp"] for ran in (several, one))


def test_what_it_does_not_run_is_refused_with_a_reason() -> None:
    checkpoint = random_checkpoint(0)
    with pytest.raises(BackendUnavailable, match=r"float16[^$]*torch"):
        cpu_runner(checkpoint, "float16")
    with pytest.raises(BackendUnavailable, match="cuda"):
        build(compile_stack(checkpoint.spec), fold(checkpoint), Limits("float32", device="cuda"))


IN_A_CHILD = """
import os, sys, time
import numpy as np
from tests.support.random_specs import random_checkpoint
from tests.backends.test_cpu_runner import cpu_runner, engine_side
from engine.errors import EngineError
checkpoint = random_checkpoint(4)
ids = np.zeros(9, np.int64)
runner = cpu_runner(checkpoint, threads=2)
expected = engine_side.whole(runner, ids)
child = os.fork()
if child == 0:
    try:
        engine_side.whole(runner, ids)
        os._exit(3)
    except EngineError as error:
        own = engine_side.whole(cpu_runner(checkpoint, threads=2), ids)
        os._exit(0 if "forked" in str(error) and np.array_equal(own, expected) else 4)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
assert np.array_equal(engine_side.whole(runner, ids), expected)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_is_told_to_load_its_own_model() -> None:
    done = run_python(IN_A_CHILD)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


def test_brings_in_no_torch() -> None:
    code = (
        "import sys, numpy, engine; from engine.backends import cpu; import engine.loading;"
        "from tests.support.random_specs import random_checkpoint; from engine.backends.fold import fold;"
        "from engine.backends.plan import compile_stack; from engine.backends.runner import Batch, Limits; c = random_checkpoint(2);"
        "r = cpu.build(compile_stack(c.spec), fold(c), Limits('float32')); r.open(); one = numpy.ones(1, int);"
        "r.step(Batch(one, one * 0, one * 0, one, 'next')); sys.exit('torch' in sys.modules)"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr


AVX512 = ("avx512f", "avx512bw", "avx512dq", "avx512vl")
INSTRUCTION_SETS = {
    "generic": (),
    "avx2": ("avx2", "fma"),
    "avx512": AVX512,
    "avx512_bf16": (*AVX512, "avx512_bf16", "avx512_vnni"),
    "amx": (*AVX512, "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16"),
}
ON_ONE = """
import sys
import numpy as np
from tests.backends.test_cpu_runner import Case, cpu_runner, engine_side
for seed in range(12):
    case = Case.draw(seed)
    runner = cpu_runner(case.checkpoint)
    case.check(engine_side.whole(runner, case.ids), "whole")
    case.check(engine_side.one_by_one(runner, case.ids), "token by token")
print(runner.describe()["instruction_set"])
"""


def processor_flags() -> set[str]:
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    return set(next((line.split(":", 1)[1].split() for line in text.splitlines() if line.startswith("flags")), []))


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_every_instruction_set_keeps_to_the_oracle_or_says_what_is_missing(name: str) -> None:
    done = run_python(ON_ONE, HEADCOUNT_CPU_ISA=name)
    if set(INSTRUCTION_SETS[name]) <= processor_flags():
        assert (done.returncode, done.stdout) == (0, f"{name}\n"), done.stderr
    else:
        assert done.returncode != 0 and name in done.stderr and "HEADCOUNT_CPU_ISA" in done.stderr


def test_auto_is_bfloat16_where_the_processor_multiplies_it_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_MULTIPLIES_BFLOAT16", (native.instruction_set(),))
    with engine.load(Path(__file__).parents[1] / "fixtures" / "aiha-char") as model:
        explained = model.explain()
    assert explained.dtype == "bfloat16" and "multiplies it directly" in str(explained)
    with engine.load(Path(__file__).parents[1] / "fixtures" / "aiha-char", dtype="float32") as model:
        assert model.explain().dtype == "float32" and "(as asked)" in str(model.explain())


def test_an_unknown_instruction_set_is_an_error_of_load() -> None:
    path = ROOT / "examples" / "shakespeare" / "gated.ckpt"
    code = f"import engine\ntry: engine.load({str(path)!r})\nexcept engine.errors.BackendUnavailable as error: print(error)"
    done = run_python(code, HEADCOUNT_CPU_ISA="sse9")
    assert done.returncode == 0 and "HEADCOUNT_CPU_ISA" in done.stdout and "sse9" in done.stdout, done.stdout + done.stderr
