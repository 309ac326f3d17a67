"""What a node of a graph and a barrier of a whole grid cost: the two unit prices of running a model from its first layer to its last."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from bench.suites.gpu.figures import Run
from engine_kernels.gpu_ops import Norm
from engine_kernels.triton_ops.projections import normalise

NODES = 64
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
    run.attempt("cost of a graph node", lambda: _graph_node(run))
    run.attempt("cost of a grid barrier", lambda: _grid_barrier(run))


def _graph_node(run: Run) -> None:
    """The difference of two graphs of small kernels."""
    if run.interpreted:
        run.miss("cost of a graph node: the interpreter has no graphs")
        return
    launch, x = run.launcher(), torch.randn((3, 512), device=run.device)
    norm = Norm(x[1], x[2], 1e-5)
    times = {}
    for nodes in (1, 1 + NODES):
        normalise(launch, x[:1], norm)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(nodes):
                normalise(launch, x[:1], norm)
        times[nodes] = run.clock.warm(graph.replay)["seconds"]
    run.add("barrier", "graph node", seconds=(times[1 + NODES] - times[1]) / NODES)


def _grid_barrier(run: Run) -> None:
    """ROUNDS barriers less none, over one program on each multiprocessor; a cooperative launch has all of them there at once."""
    programs = 1 if run.interpreted else torch.cuda.get_device_properties(run.device).multi_processor_count
    together: dict[str, Any] = {} if run.interpreted else {"launch_cooperative_grid": True}
    counter, missed = (torch.zeros(1, dtype=torch.int32, device=run.device) for _ in range(2))

    def work(rounds: int) -> None:
        counter.zero_()
        meet[(programs,)](counter, missed, rounds, PATIENCE, num_warps=4, **together)

    def met() -> bool:
        arrivals, lost = int(counter.item()), int(missed.item())
        if arrivals == programs * ROUNDS and not lost:
            return True
        run.fail(f"grid barrier: {programs * ROUNDS} arrivals expected, found {arrivals}, {lost} gave up")
        return False

    work(ROUNDS)
    if not met():
        return  # each sample would take as long as its patience
    times = {rounds: run.clock.warm(lambda rounds=rounds: work(rounds))["seconds"] for rounds in (0, ROUNDS)}  # type: ignore[misc]
    if met():
        run.add("barrier", f"grid barrier, {programs} programs", seconds=max(times[ROUNDS] - times[0], 0.0) / ROUNDS)
