"""Each instruction set's kernels, disassembled: no instruction a lesser CPU lacks, nothing the linker could merge between them."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNITS = ("generic", "avx2", "avx512", "avx512_bf16", "amx")
TILES = {"ldtilecfg", "tilerelease", "tilezero", "tileloadd", "tilestored", "tdpbf16ps"}
DOTS = {"vdpbf16ps", "vpdpwssd", "vcvtneps2bf16"}
OPERATIONS = {"attend_decode", "attend_multiply", "attend_rows", "linear", "rows", "table"}

pytestmark = [
    pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the units with flags of their own are those of x86-64"),
    pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump is not installed (Debian package: binutils)"),
]


def objects(unit: str) -> list[Path]:
    """The objects of one unit in the newest optimised build: of HEADCOUNT_BUILD, `make setup` or `make ci`."""
    folders = (
        [Path(os.environ["HEADCOUNT_BUILD"])] if "HEADCOUNT_BUILD" in os.environ else [*ROOT.glob("build/cp*"), ROOT / "build/ci/strict"]
    )
    found = [sorted(folder.glob(f"kernels/CMakeFiles/headcount_unit_{unit}.dir/csrc/cpu/units/*.o")) for folder in folders]
    found = [files for files in found if files]
    if not found:
        pytest.skip("no build of the native core is left to look at")
    return max(found, key=lambda files: max(file.stat().st_mtime for file in files))


def read(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def instructions(unit: str) -> tuple[Counter[str], Counter[str]]:
    """How often each mnemonic and each vector or mask register occurs."""
    mnemonics: Counter[str] = Counter()
    registers: Counter[str] = Counter()
    for file in objects(unit):
        for line in read("objdump", "-d", "--no-show-raw-insn", file).splitlines():
            fields = line.split("\t")
            if len(fields) < 2:
                continue
            mnemonics[fields[1].split()[0]] += 1
            registers.update(re.findall(r"%([xyz]mm\d+|k\d)", fields[1]))
    assert mnemonics.total() > 1000
    return mnemonics, registers


def fused(mnemonics: Counter[str]) -> int:
    return sum(count for name, count in mnemonics.items() if name.startswith("vfmadd") and name.endswith("ps"))


def test_every_unit_has_every_operation() -> None:
    for unit in UNITS:
        assert {file.name.removesuffix(".cc.o") for file in objects(unit)} == OPERATIONS


def test_generic_is_baseline_x86_64() -> None:
    mnemonics, registers = instructions("generic")
    assert {name[:3] for name in registers} == {"xmm"}
    assert [name for name in mnemonics if name.startswith("v")] == []
    assert mnemonics["mulps"] > 0
    assert not {"roundps", "blendvps", "pmulld", "pmovsxbd", "popcnt", "pshufb"} & set(mnemonics)  # SSE3 and later


def test_avx2_has_fused_multiply_add_and_no_avx512() -> None:
    mnemonics, registers = instructions("avx2")
    assert {name[:3] for name in registers} == {"xmm", "ymm"}
    assert max(int(name[3:]) for name in registers) <= 15
    assert fused(mnemonics) > 100


@pytest.mark.parametrize("unit", ["avx512", "avx512_bf16", "amx"])
def test_wide_units_use_their_registers(unit: str) -> None:
    mnemonics, registers = instructions(unit)
    assert any(name.startswith("zmm") for name in registers)
    assert fused(mnemonics) > 100


@pytest.mark.parametrize("unit", UNITS)
def test_dot_products_and_tiles_are_where_they_belong(unit: str) -> None:
    """Of few rows the AMX unit, too, makes dot products."""
    used = set(instructions(unit)[0])
    dots = {"vdpbf16ps", "vpdpwssd"}
    assert dots <= used if unit in ("avx512_bf16", "amx") else not DOTS & used
    assert used >= TILES if unit == "amx" else not TILES & used


@pytest.mark.parametrize("unit", UNITS)
def test_nothing_is_merged_between_units(unit: str) -> None:
    """A weak symbol of one unit would replace the same one of another: an illegal instruction on a lesser CPU."""
    for file in objects(unit):
        for line in read("nm", "--demangle", "--defined-only", file).splitlines():
            _, kind, name = line.split(maxsplit=2)
            assert kind not in "WVuw", f"{file.name}: {name} is shared"
            if kind.isupper():
                assert name.startswith(f"headcount::cpu::{unit}::"), f"{file.name}: {name}"
