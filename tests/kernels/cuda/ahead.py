"""Compiles every .cu by nvcc. `python -m tests.kernels.cuda.ahead` prints the table of docs/kernel-log.md, registers of a thread by kernel
and target, the larger of bfloat16 and float16; --sass prints what their machine code holds; --check compares with the first table and
applies the rules of machine_code.py where there is a cuobjdump.

Any spill or stack is an error. Shared memory is dynamic and so not the compiler's to know.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.kernels.cuda.machine_code import Code, disassemble, find_cuobjdump, problems_of, short, table, targets_in

ROOT = Path(__file__).parents[3]
SOURCES = ROOT / "kernels" / "csrc"
TARGETS = ("sm_80", "sm_90a")
HOPPER_ALONE = ("hopper", "decode")  # rooms whose instructions sm_80 lacks
WITH_PTX = "vocabulary.cu"  # compiled for all that the module is compiled for; the others' PTX would take nvcc long and show nothing more
LOG = ROOT / "docs" / "kernel-log.md"
HEAD = "| CUDA kernel | sm_80 | sm_90a |"

Registers = dict[str, dict[str, int]]  # by kernel, by target
Kernels = list[tuple[str, Code]]


def module_targets() -> list[str]:
    """The default of HEADCOUNT_CUDA_ARCHITECTURES: sm_ for machine code, compute_ for PTX."""
    (listed,) = re.findall(r'HEADCOUNT_CUDA_ARCHITECTURES "(.+?)"', (ROOT / "CMakeLists.txt").read_text(encoding="utf-8"))
    return [re.sub(r"(\w+)-real", r"sm_\1", re.sub(r"(\w+)-virtual", r"compute_\1", target)) for target in listed.split(";")]


def compile_one(source: Path, cuobjdump: str | None, problems: list[str]) -> tuple[Registers, Kernels]:
    """What ptxas says of a file's kernels, and their machine code; what is wrong goes into problems."""
    targets = module_targets() if source.name == WITH_PTX else list(TARGETS[1:] if source.parent.name in HOPPER_ALONE else TARGETS)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{source.stem}.o"
        code = [f"-gencode=arch={re.sub('sm', 'compute', target)},code={target}" for target in targets]
        command = ["nvcc", "-std=c++17", "-O3", "-I", str(SOURCES), "-Xptxas", "-v", *code, "-c", str(source), "-o", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            problems.append(f"{source.name} does not compile:\n{done.stderr[-2000:]}")
            return {}, []
        kernels = disassemble(cuobjdump, file) if cuobjdump else []
        if cuobjdump and (found := targets_in(cuobjdump, file)) != sorted(targets):
            problems.append(f"{source.name}: asked for {', '.join(sorted(targets))}, and the object file holds {', '.join(found)}")
    dependent = "dependent = true" in source.read_text(encoding="utf-8")
    problems += dict.fromkeys(problem for name, instructions in kernels for problem in problems_of(name, instructions, dependent))
    return registers_of(source, done.stderr, problems), kernels


def registers_of(source: Path, report: str, problems: list[str]) -> Registers:
    """From ptxas's report, in which spills, stacks and products that it serialised are problems."""
    said = subprocess.run(["c++filt"], input=report, capture_output=True, text=True, check=True).stdout
    found: Registers = {}
    name = target = ""
    for line in said.splitlines():
        if entry := re.search(r"Compiling entry function '(.+)' for '(sm_\w+)'", line):
            name, target = short(entry[1]), entry[2]
        elif frame := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            if frame.groups() != ("0", "0", "0"):
                problems.append(f"{name}, {target}: {line.strip()}")
        elif "(C75" in line:  # products of warpgroups one after another
            problems.append(f"{source.name}: {line.strip()[:200]}")
        elif used := re.search(r"Used (\d+) registers", line):
            both = found.setdefault(name, {})
            both[target] = max(both.get(target, 0), int(used[1]))
    return found


def compile_all(cuobjdump: str | None, problems: list[str]) -> tuple[Registers, Kernels]:
    files = sorted((SOURCES / "cuda").rglob("*.cu"))
    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(lambda file: compile_one(file, cuobjdump, problems), files))
    return {name: of for registers, _ in parts for name, of in registers.items()}, [kernel for _, kernels in parts for kernel in kernels]


def register_table(registers: Registers) -> str:
    rows = [f"| {name} | " + " | ".join(str(of.get(target, "–")) for target in TARGETS) + " |" for name, of in sorted(registers.items())]
    return "\n".join([HEAD, "|---|---|---|", *rows])


def compare(registers: Registers, recorded: str, problems: list[str]) -> None:
    """Against the table in docs/kernel-log.md, where it was made by the nvcc at hand."""
    version = re.search(r"release ([\d.]+)", subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout)
    if version is None or f"nvcc {version[1]}" not in recorded:
        return
    rows = [line.strip("| ").split(" | ") for line in recorded.split(HEAD, 1)[-1].split("\n\n")[0].splitlines()[2:]]
    known = {row[0]: dict(zip(TARGETS, row[1:], strict=True)) for row in rows}
    for name, of in registers.items():
        for target, count in of.items():
            limit = known.get(name, {}).get(target, "–")
            if limit == "–":
                problems.append(f"{name}, {target}: not in the table")
            elif count > int(limit):
                problems.append(f"{name}, {target}: {count} registers, recorded {limit}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.kernels.cuda.ahead", description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--sass", action="store_true")
    arguments = parser.parse_args()
    problems: list[str] = []
    cuobjdump = find_cuobjdump()
    registers, kernels = compile_all(cuobjdump, problems)
    if arguments.check:
        compare(registers, LOG.read_text(encoding="utf-8"), problems)
    if arguments.sass:
        print(table(kernels))
    if not arguments.check and not arguments.sass:
        print(register_table(registers))
    if problems:
        sys.exit("\n".join([*problems, "if meant: python -m tests.kernels.cuda.ahead prints the table of docs/kernel-log.md"]))
    read = f"{len(kernels)} read in machine code" if cuobjdump else "no cuobjdump to read their machine code"
    print(f"{len(registers)} kernels compiled for {' and '.join(TARGETS)}, nothing spilt; {read}", file=sys.stderr)


if __name__ == "__main__":
    main()
