"""`python -m tests.kernels.cuda.ahead` compiles every .cu by nvcc and prints the table of docs/kernel-log.md; --check compares with it.

Registers of a thread by kernel and target, the larger of bfloat16 and float16; any spill or stack is an error. Shared memory is dynamic and
so not the compiler's to know.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[3]
SOURCES = ROOT / "kernels" / "csrc"
TARGETS = ("sm_80", "sm_90a")
HOPPER_ALONE = ("hopper_", "decode")  # files whose instructions sm_80 lacks
LOG = ROOT / "docs" / "kernel-log.md"
HEAD = "| CUDA kernel | sm_80 | sm_90a |"

Registers = dict[str, dict[str, int]]  # by kernel, by target


def compile_one(source: Path, problems: list[str]) -> Registers:
    """What ptxas says of a file's kernels; spills and errors go into problems."""
    targets = TARGETS[1:] if source.name.startswith(HOPPER_ALONE) else TARGETS
    with tempfile.TemporaryDirectory() as folder:
        code = [f"-gencode=arch={target.replace('sm', 'compute')},code={target}" for target in targets]
        command = ["nvcc", "-std=c++17", "-O3", "-I", str(SOURCES), "-Xptxas", "-v", *code, "-c", str(source), "-o", f"{folder}/out.o"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        problems.append(f"{source.name} does not compile:\n{done.stderr[-2000:]}")
        return {}
    said = subprocess.run(["c++filt"], input=done.stderr, capture_output=True, text=True, check=True).stdout
    found: Registers = {}
    name = target = ""
    for line in said.splitlines():
        if entry := re.search(r"Compiling entry function '(.+)' for '(sm_\w+)'", line):
            name, target = short(entry[1]), entry[2]
        elif frame := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            if frame.groups() != ("0", "0", "0"):
                problems.append(f"{name}, {target}: {line.strip()}")
        elif used := re.search(r"Used (\d+) registers", line):
            both = found.setdefault(name, {})
            both[target] = max(both.get(target, 0), int(used[1]))
    return found


def short(name: str) -> str:
    """A kernel's name without its arguments, spaces and type of number."""
    name = re.sub(r"\(anonymous namespace\)::|cuda::|^void ", "", name)
    name = name.split("(", 1)[0] if "<" not in name else name[: name.rindex(">") + 1]
    return re.sub(r"\b(__nv_bfloat16|__half|bf16|fp16)\b", "T", name).replace(" ", "").replace(",", ", ")


def compile_all(problems: list[str]) -> Registers:
    files = sorted((SOURCES / "cuda").glob("*.cu"))
    with ThreadPoolExecutor(2) as pool:
        return {name: targets for part in pool.map(lambda file: compile_one(file, problems), files) for name, targets in part.items()}


def table(registers: Registers) -> str:
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
    check = parser.parse_args().check
    problems: list[str] = []
    registers = compile_all(problems)
    if check:
        compare(registers, LOG.read_text(encoding="utf-8"), problems)
    else:
        print(table(registers))
    if problems:
        sys.exit("\n".join([*problems, "if meant: python -m tests.kernels.cuda.ahead prints the table of docs/kernel-log.md"]))
    print(f"{len(registers)} kernels compiled for {' and '.join(TARGETS)}, nothing spilt", file=sys.stderr)


if __name__ == "__main__":
    main()
