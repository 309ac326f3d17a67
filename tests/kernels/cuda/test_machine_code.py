"""The rules for machine code on listings with one fault each; `make ci` applies them to the kernels themselves, where nvcc is."""

from __future__ import annotations

import pytest

from tests.kernels.cuda.ahead import TARGETS, module_targets
from tests.kernels.cuda.machine_code import parse, problems_of, short

NAME = (
    "void headcount::cuda::(anonymous namespace)::multiply_and_store<{0}, 64, headcount::cuda::PlainStore<{0}> >"
    "(headcount::cuda::Matrix<{0}>, headcount::cuda::Matrix<{0}>)"
)
WAITS = ["@P0 BRA 0x30", "ACQBULK", "PREEXIT", "LDG.E R2, desc[UR4][R2.64]", "EXIT"]


def wrong(*lines: str, dependent: bool = True, name: str = "join_parts") -> list[str]:
    """The problems of a kernel whose instructions stand at 0x0, 0x10, … of the listing."""
    listing = f"\t\tFunction : headcount::cuda::(anonymous namespace)::{name}(float const*)\n"
    listing += "".join(f"        /*{at * 16:04x}*/   {line} ;   /* 0x000 */\n" for at, line in enumerate(lines))
    ((found, code),) = parse(listing)
    assert len(code) == len(lines)
    return problems_of(found, code, dependent)


def test_kernels_of_both_types_have_one_name_in_the_table() -> None:
    assert {short(NAME.format(number)) for number in ("__nv_bfloat16", "__half")} == {"multiply_and_store<T, 64, PlainStore<T>>"}
    assert short("headcount::cuda::(anonymous namespace)::join_parts(float const*, int)") == "join_parts"


def test_the_targets_compiled_ahead_are_the_modules() -> None:
    assert module_targets() == [*TARGETS, "compute_90"]


def test_a_load_after_the_wait_is_right_and_one_that_a_branch_takes_around_it_is_not() -> None:
    assert wrong("@P0 BRA 0x50", "ACQBULK", "PREEXIT", "LDG.E R2, desc[UR4][R2.64]", "EXIT", "EXIT") == []
    assert wrong(*WAITS) == ["join_parts, sm_90a: 1 LDG before griddepcontrol.wait, at most 0 expected"]


@pytest.mark.parametrize(
    ("lines", "early"),
    [
        (["LDG.E R2, desc[UR4][R2.64]", "ACQBULK", "PREEXIT", "EXIT"], "1 LDG"),
        (["BRA 0x40", "LDG.E R2, desc[UR4][R2.64]", "PREEXIT", "EXIT", "ACQBULK", "BRA 0x10"], ""),
        (["BRA.DIV ~URZ, 0x40", "ACQBULK", "PREEXIT", "EXIT", "LDG.E R2, desc[UR4][R2.64]", "BRA 0x10"], "1 LDG"),
        (["@!P0 ACQBULK", "LDG.E R2, desc[UR4][R2.64]", "PREEXIT", "EXIT"], "1 LDG"),
        (["BSSY B0, 0x50", "@P0 BRA 0x40", "ACQBULK", "BSYNC B0", "BSYNC B0", "LDG.E R2, desc[UR4][R2.64]", "PREEXIT", "EXIT"], "1 LDG"),
        (["BSSY B0, 0x40", "ACQBULK", "BSYNC B0", "PREEXIT", "LDG.E R2, desc[UR4][R2.64]", "EXIT"], ""),
        (["CALL.REL.NOINC 0x50", "LDG.E R2, desc[UR4][R2.64]", "ACQBULK", "PREEXIT", "EXIT", "RET.REL.NODEC R4 0x0"], "1 LDG"),
        (["LDGSTS.E.128 [R2], desc[UR4][R2.64]", "UTMALDG.3D [UR8], [UR4]", "ACQBULK", "PREEXIT", "EXIT"], "1 LDGSTS 1 UTMALDG"),
    ],
)
def test_what_is_read_before_the_wait(lines: list[str], early: str) -> None:
    found = [problem.removeprefix("join_parts, sm_90a: ").partition(" before griddepcontrol.wait")[0] for problem in wrong(*lines)]
    assert " ".join(found) == early


@pytest.mark.parametrize(
    ("lines", "dependent", "name", "problem"),
    [
        (["ACQBULK", "EXIT"], True, "join_parts", "launch_dependents (PREEXIT) is missing"),
        (["PREEXIT", "EXIT"], True, "join_parts", "griddepcontrol.wait (ACQBULK) is missing"),
        (["ACQBULK", "PREEXIT", "EXIT"], False, "join_parts", "none of whose launches is dependent"),
        (["ACQBULK", "PREEXIT", "LDG.E.CONSTANT R2, desc[UR4][R2.64]", "EXIT"], True, "join_parts", "LDG…CONSTANT"),
        (["ACQBULK", "PREEXIT", "STL [R1], R2", "EXIT"], True, "join_parts", "STL spills"),
        (["LDL R2, [R1]", "EXIT"], False, "decode_step", "LDL spills"),
        ((["ACQBULK", "PREEXIT", "UTMALDG.3D [UR8], [UR4]", "UTMALDG.3D [UR8], [UR4]", "USETMAXREG.DEALLOC.CTAPOOL 0x28"]
          + ["USETMAXREG.TRY_ALLOC.CTAPOOL UP0, 0xe8", *["HGMMA.64x64x16.F32.BF16 R24, R4, gdesc[UR4], R24"] * 31, "EXIT"]), True,
         "hopper_kernel<__half>", "31 HGMMA, expected 32"),
    ],
)  # fmt: skip
def test_each_rule_finds_its_fault(lines: list[str], dependent: bool, name: str, problem: str) -> None:
    (found,) = wrong(*lines, dependent=dependent, name=name)
    assert problem in found
