"""What int8 and bfloat16 cost: perplexity of the trained example on every instruction set, the command line, memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import engine
from engine.errors import BackendUnavailable, InputError, Unsupported
from engine.precision import Precision, compare_precisions
from tests.engine.command import headcount
from tests.engine.test_cpu_runner import INSTRUCTION_SETS, ROOT, processor_flags, run_python

EXAMPLE = ROOT / "examples" / "shakespeare"
HELD_OUT = EXAMPLE / "heldout.txt"
PPL_PERCENT = {None: 0.1, "int8": 0.5}  # quantization → largest change of the perplexity, in percent

ON_ONE = """
import json, engine
from engine.precision import USUAL, Precision, compare_precisions
from tests.engine.test_precision import EXAMPLE, HELD_OUT
text = HELD_OUT.read_text(encoding="utf-8")
found = {}
for name in ("dense", "gated"):
    load = lambda p: engine.load(EXAMPLE / f"{name}.ckpt", backend="cpu", threads=1, dtype=p.dtype, quantization=p.quantization)
    lines = compare_precisions(load, lambda m: m.score([m.tokenizer.encode(text)]), [*USUAL, Precision("bfloat16", "int8")])
    found[name] = [line.to_dict() for line in lines]
    found["instruction_set"] = load(Precision()).explain().runner["instruction_set"]
print(json.dumps(found))
"""


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_perplexity_of_the_trained_example(name: str) -> None:
    if not set(INSTRUCTION_SETS[name]) <= processor_flags():
        pytest.skip(f"this processor has no {name}")
    done = run_python(ON_ONE, ENGINE_CPU_ISA=name)
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
