"""Compiles what the launchers start, for GPUs that are not here: registers, spills, shared memory and matrix instructions of each kernel.

`python -m tests.kernels.triton.ahead` prints the table of docs/kernel-log.md; `--json TARGET` what the tests read; `--warm TARGET` fills
Triton's cache in as many processes as there are processors. The launchers run unchanged, on tensors never computed with; only the start of
a kernel is replaced by its compilation. Not under TRITON_INTERPRET.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from engine_kernels.triton_ops.launch import Launcher
from engine_kernels.triton_ops.tiles import Tile
from tests.kernels.triton.ahead_calls import CALLS, everything

TARGETS = {"sm_80": GPUTarget("cuda", 80, 32), "sm_90": GPUTarget("cuda", 90, 32), "gfx942": GPUTarget("hip", "gfx942", 64)}


@dataclass(frozen=True)
class Compiled:
    """One kernel for one target. registers: of a thread, accumulators included; spills: bytes of stack, on AMD also vector registers."""

    kernel: str
    variant: str
    dtype: str
    tile: str  # rows × columns, warps, stages
    registers: int
    spills: int
    shared: int  # bytes
    matrix: int  # matrix instructions

    @property
    def name(self) -> str:
        return " | ".join((self.kernel, self.variant, self.dtype, self.tile))


class Driver:
    """What Triton asks of a driver to compile: a target, and a device number to keep its results by."""

    def __init__(self, target: str) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return TARGETS[self.target]

    def get_current_device(self) -> int:
        return list(TARGETS).index(self.target)

    def get_current_stream(self, device: int) -> int:
        return 0


class Compiler(Launcher):
    """A launcher that compiles for a target instead of starting; `found` holds each compilation once, by what tells it from others."""

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self.found: dict[tuple[Any, ...], Any] = {}
        triton.runtime.driver.set_active(Driver(target))

    def start(self, kernel: Any, grid: tuple[int, ...], tile: Tile, *arguments: Any, **constants: Any) -> None:
        built = kernel.warmup(*arguments, **constants, grid=grid, num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=True)
        tensors = [getattr(a, "base", a) for a in arguments]  # of a descriptor
        dtypes = [str(a.dtype).removeprefix("torch.") for a in tensors if isinstance(a, torch.Tensor)]
        dtype = next((name for name in ("int8", "bfloat16", "float16") if name in dtypes), "float32")
        named = {name: value for name, value in constants.items() if name != "INT8" and (value is True or isinstance(value, str))}
        variant = " ".join(name.lower() if value is True else value for name, value in named.items())
        self.found[kernel.__name__, variant, dtype, tile, built.hash] = built


def report(found: dict[tuple[Any, ...], Any]) -> list[Compiled]:
    """The compilations of a Compiler, measured."""
    rows = []
    for (kernel, variant, dtype, tile, _), built in found.items():
        measured = amd(built.asm["amdgcn"]) if "amdgcn" in built.asm else nvidia(built.asm["cubin"], built.asm["ptx"])
        shape = f"{tile.rows} × {tile.keys}, {tile.warps} w, {tile.stages} s"
        rows.append(Compiled(kernel, variant, dtype, shape, **measured, shared=built.metadata.shared))
    return rows


def nvidia(cubin: bytes, ptx: str) -> dict[str, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], check=True, capture_output=True, text=True).stdout
    used = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return {
        "registers": used["REG"],
        "spills": used["STACK"] + used["LOCAL"],
        "matrix": len(re.findall(r"\b(?:wgmma\.mma_async|mma)\.sync", ptx)),
    }


def amd(text: str) -> dict[str, int]:
    used = {name: int(value) for name, value in re.findall(r"\.(\w+):\s+(\d+)\n", text)}
    return {
        "registers": used["vgpr_count"],
        "spills": used["private_segment_fixed_size"] + used["vgpr_spill_count"],
        "matrix": text.count("v_mfma"),
    }


def compile_all(target: str) -> list[Compiled]:
    launch = Compiler(target)
    for call in CALLS:
        call(launch)
    return report(launch.found)


def count(heads: Iterable[int]) -> dict[str, int]:
    """How many compilations one call of everything with each of these head counts needs, by kernel, tile and dtype."""
    launch = Compiler("sm_90")
    for number in heads:
        everything(launch, number)
    counts: dict[str, int] = {}
    for kernel, variant, dtype, tile, _ in launch.found:
        name = f"{kernel} {variant} {dtype} {tile}"
        counts[name] = counts.get(name, 0) + 1
    return counts


def warm(target: str) -> int:
    """How many compilations of the published sizes now stand in Triton's cache, where launches on a device of this architecture find them.

    Their keys hold the architecture and no device; Triton, its ptxas and its environment variables must be those of the launches.
    """
    halves = [partial(call, dtype=torch.float16) for call in CALLS if call.keywords["dtype"] == torch.bfloat16]  # in smoke tests
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        return len(set().union(*pool.map(partial(_hashes, target), (*CALLS, *halves))))


def _hashes(target: str, call: Callable[[Launcher], None]) -> set[str]:
    launch = Compiler(target)
    call(launch)
    return {key[-1] for key in launch.found}


def table() -> str:
    """The rows of docs/kernel-log.md: registers / shared memory in KiB / matrix instructions for each target."""
    by_target = {target: {row.name: row for row in compile_all(target)} for target in TARGETS}
    names = dict.fromkeys(name for rows in by_target.values() for name in rows)
    lines = [f"| kernel | variant | dtype | tile | {' | '.join(TARGETS)} |", "|" + "---|" * (4 + len(TARGETS))]
    for name in names:
        cells = [by_target[target].get(name) for target in TARGETS]
        lines.append(
            f"| {name} | " + " | ".join("–" if c is None else f"{c.registers} / {c.shared / 1024:.1f} / {c.matrix}" for c in cells) + " |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    assert os.environ.get("TRITON_INTERPRET", "0") in ("", "0"), "the interpreter compiles nothing: unset TRITON_INTERPRET"
    if sys.argv[1:2] == ["--json"]:
        print(json.dumps([asdict(row) for row in compile_all(sys.argv[2])]))
    elif sys.argv[1:2] == ["--count"]:
        print(json.dumps(count(range(1, 9))))
    elif sys.argv[1:2] == ["--warm"]:
        print(f"{warm(sys.argv[2])} compilations for {sys.argv[2]}")
    else:
        print(table())
