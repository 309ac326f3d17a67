"""What a barrier of a whole grid costs: the unit price of a kernel that runs a model from its first layer to its last."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from bench.gpu.figures import Run

ROUNDS = 256
PATIENCE = 1 << 22  # looks at the counter; a grid that does not meet ends all the same


@triton.jit(do_not_specialize=["rounds", "patience"])
def meet(counter, missed, rounds, patience):
    """All programs meet `rounds` times at counter [1], int32; missed [1]: how often one lost its patience."""
    programs = tl.num_programs(0)
    for turn in range(rounds):
        arrived = tl.atomic_add(counter, 1, sem="acq_rel") + 1
        left = patience
        while (arrived < (turn + 1) * programs) & (left > 0):
            arrived = tl.atomic_add(counter, 0, sem="acquire")
            left -= 1
        if left == 0:
            tl.atomic_add(missed, 1)


def measure(run: Run) -> None:
    """ROUNDS barriers less none, over one program on each multiprocessor; a cooperative launch has all of them there at once."""
    programs = 1 if run.interpreted else torch.cuda.get_device_properties(run.device).multi_processor_count
    together: dict[str, Any] = {} if run.interpreted else {"launch_cooperative_grid": True}
    counter, missed = (torch.zeros(1, dtype=torch.int32, device=run.device) for _ in range(2))

    def work(rounds: int) -> None:
        counter.zero_()
        meet[(programs,)](counter, missed, rounds, PATIENCE, num_warps=4, **together)

    work(ROUNDS)
    if int(counter.item()) != programs * ROUNDS or int(missed.item()):
        run.failed.append(f"barrier: {programs * ROUNDS} arrivals expected, found {int(counter.item())}, {int(missed.item())} gave up")
        return
    times = {rounds: run.seconds(lambda rounds=rounds: work(rounds))["seconds"] for rounds in (0, ROUNDS)}  # type: ignore[misc]
    run.add("card", f"grid barrier, {programs} programs", seconds=max(times[ROUNDS] - times[0], 0.0) / ROUNDS)
