"""The machine code nvcc made of the kernels, as `cuobjdump` shows it, and the rules it must keep on sm_90a.

A kernel started by programmatic dependent launch begins before the one before it has ended: until a thread has run griddepcontrol.wait
(ACQBULK) it may touch nothing that an earlier kernel reads or writes. `python -m tests.kernels.cuda.machine_code` says which cuobjdump is
used.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

TARGET = "sm_90a"
GLOBAL = ("LDG", "LD", "LDGSTS", "UBLKCP", "UTMALDG", "STG", "ST", "ATOM", "ATOMG", "RED", "REDG")  # memory, or what may be global
EARLY = {  # at most so many before the wait, by the kernel's name without its template's arguments
    # Persistent keys and values.
    "constants_kernel": {"LDGSTS": 19},
    # Persistent vectors; and tiles, lengths, positions, first rows, slots and offsets, there before the kernel before began.
    "hopper_kernel": {"LDG": 7, "UTMALDG": 2},
    # Weights, number by number where the depth is no multiple of 8.
    "multiply_few": {"LDG": 8, "LDGSTS": 1},
}
EXACTLY = {"hopper_kernel": {"HGMMA": 32, "UTMALDG": 2, "USETMAXREG": 2}}
COLUMNS = ("ACQBULK", "PREEXIT", "HMMA", "HGMMA", "LDG", "LDGSTS", "UTMALDG", "UBLKCP", "USETMAXREG")


@dataclass(frozen=True)
class Instruction:
    address: int
    text: str  # without its predicate
    predicated: bool

    @property
    def kind(self) -> str:
        return re.split(r"[. ]", self.text, maxsplit=1)[0]

    @property
    def operands(self) -> list[str]:
        return [part.strip() for part in self.text.partition(" ")[2].split(",")]

    @property
    def target(self) -> int | None:
        last = self.operands[-1]
        return int(last, 16) if re.fullmatch("0x[0-9a-f]+", last) else None


Code = list[Instruction]


def find_cuobjdump() -> str | None:
    """Beside nvcc, on PATH, or in Triton's package."""
    nvcc, triton = shutil.which("nvcc"), importlib.util.find_spec("triton")
    folders = [Path(nvcc).parent, Path(nvcc).resolve().parent] if nvcc else []
    folders += [Path(folder) / "backends" / "nvidia" / "bin" for folder in (triton.submodule_search_locations or [] if triton else [])]
    beside = (shutil.which("cuobjdump", path=str(folder)) for folder in folders)
    return next((found for found in beside if found), None) or shutil.which("cuobjdump")


def short(name: str) -> str:
    """A kernel's name without its arguments, spaces and type of number."""
    name = re.sub(r"\(anonymous namespace\)::|headcount::cuda::|^void ", "", name)
    return re.sub(r"\b(__nv_bfloat16|__half|bf16|fp16)\b", "T", name.split("(", 1)[0]).replace(" ", "").replace(",", ", ")


def targets_in(cuobjdump: str, file: Path) -> list[str]:
    """What the file holds machine code (sm_) and PTX (compute_) for."""
    said = subprocess.run([cuobjdump, "-lelf", "-lptx", str(file)], capture_output=True, text=True, check=True).stdout
    code, ptx = re.findall(r"^ELF file.*\.(sm_\w+)\.cubin$", said, re.M), re.findall(r"^PTX file.*\.sm_(\w+)\.ptx$", said, re.M)
    return sorted([*code, *(f"compute_{number}" for number in ptx)])


def disassemble(cuobjdump: str, file: Path) -> list[tuple[str, Code]]:
    """The kernels for sm_90a, those of both types of number under one name."""
    said = subprocess.run([cuobjdump, "-sass", "-arch", TARGET, str(file)], capture_output=True, text=True, check=True).stdout
    return parse(subprocess.run(["c++filt"], input=said, capture_output=True, text=True, check=True).stdout)


def parse(listing: str) -> list[tuple[str, Code]]:
    kernels: list[tuple[str, Code]] = []
    for line in listing.splitlines():
        if named := re.match(r"\s*Function : (.+)", line):
            kernels.append((short(named[1]), []))
        elif found := re.match(r"\s*/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+ )?\s*(.*?)\s*;", line):
            kernels[-1][1].append(Instruction(int(found[1], 16), found[3], found[2] is not None))
    return kernels


State = tuple[int, tuple[int, ...], tuple[tuple[str, int], ...]]  # the next instruction, where calls return, where partings meet


def before_the_wait(code: Code) -> Code:
    """The instructions some thread may come to without having run ACQBULK, whatever its branches depend on."""
    place = {instruction.address: index for index, instruction in enumerate(code)}
    open_: list[State] = [(0, (), ())]
    seen: set[State] = set()
    while open_:
        state = open_.pop()
        if state not in seen and state[0] < len(code):
            seen.add(state)
            open_ += following(code[state[0]], state, place)
    return [code[index] for index in sorted({state[0] for state in seen})]


def following(instruction: Instruction, state: State, place: dict[int, int]) -> list[State]:
    """BSSY notes in a register where threads that part meet again, and BSYNC goes there."""
    index, returns, meetings = state
    kind, register, after = instruction.kind, instruction.operands[0], (index + 1, returns, meetings)
    target = place.get(instruction.target) if instruction.target is not None else None
    others = tuple((name, meeting) for name, meeting in meetings if name != register)
    stays = [after] if instruction.predicated else []
    if kind == "BSSY" and target is not None:
        return [(index + 1, returns, (*others, (register, target)))]
    if kind == "BSYNC":
        return [(dict(meetings)[register], returns, others), *stays]
    if kind == "CALL" and target is not None:
        return [(target, (*returns, index + 1), meetings), *stays]
    if kind == "RET":
        return [(returns[-1], returns[:-1], meetings), *stays]
    if kind == "BRX":  # by a table: to anywhere
        return [(anywhere, returns, meetings) for anywhere in place.values()]
    if kind in ("ACQBULK", "EXIT"):
        return stays
    if kind not in ("BRA", "JMP", "WARPSYNC") or target is None:
        return [after]
    always = kind != "WARPSYNC" and not instruction.predicated and len(instruction.operands) == 1
    return [(target, returns, meetings)] + ([] if always else [after])


def problems_of(name: str, code: Code, dependent: bool) -> list[str]:
    """What is wrong with a kernel; dependent: started by programmatic dependent launch."""
    found, family = Counter(instruction.kind for instruction in code), name.split("<")[0]
    wrong = [f"{kind} spills to or reads back from local memory" for kind in ("LDL", "STL") if found[kind]]
    if any(instruction.kind == "LDG" and ".CONSTANT" in instruction.text for instruction in code):
        wrong.append("LDG…CONSTANT reads by the read-only cache, which sees no other kernel's stores")
    for kind, meaning in (("ACQBULK", "wait"), ("PREEXIT", "launch_dependents")):
        if dependent and not found[kind]:
            wrong.append(f"launched as a dependent, and griddepcontrol.{meaning} ({kind}) is missing")
    if not dependent and found["ACQBULK"]:
        wrong.append("griddepcontrol.wait (ACQBULK) in a file none of whose launches is dependent")
    if dependent and found["ACQBULK"]:
        early, allowed = Counter(instruction.kind for instruction in before_the_wait(code)), EARLY.get(family, {})
        wrong += [
            f"{early[kind]} {kind} before griddepcontrol.wait, at most {allowed.get(kind, 0)} expected"
            for kind in GLOBAL
            if early[kind] > allowed.get(kind, 0)
        ]
    wrong += [f"{found[kind]} {kind}, expected {count}" for kind, count in EXACTLY.get(family, {}).items() if found[kind] != count]
    return [f"{name}, {TARGET}: {problem}" for problem in wrong]


def table(kernels: list[tuple[str, Code]]) -> str:
    """Instructions of each kind, the larger number of bfloat16 and float16, and those on global memory before the wait."""
    rows: dict[str, Counter[str]] = defaultdict(Counter)
    early: dict[str, Counter[str]] = defaultdict(Counter)
    for name, code in kernels:
        rows[name] |= Counter(instruction.kind for instruction in code) | Counter({"all": len(code)})
        if any(instruction.kind == "ACQBULK" for instruction in code):
            early[name] |= Counter(instruction.kind for instruction in before_the_wait(code) if instruction.kind in GLOBAL)
    head = [f"kernel on {TARGET}", "instructions", *COLUMNS, "global memory before ACQBULK"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, found in sorted(rows.items()):
        counts = " | ".join(str(found[kind]) for kind in ("all", *COLUMNS))
        first = ", ".join(f"{count} {kind}" for kind, count in sorted(early[name].items())) or "–"
        lines.append(f"| {name} | {counts} | {first} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(print(find_cuobjdump()) if find_cuobjdump() else "cuobjdump is neither beside nvcc, nor on PATH, nor in Triton's package")
