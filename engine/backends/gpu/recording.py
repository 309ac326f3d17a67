"""How the work of a decode step is done again: by starting its kernels, or on a GPU by replaying them as a CUDA graph."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from engine.errors import EngineError, Problem

Results = tuple[torch.Tensor, ...]  # [rows, ..] each
Replay = Callable[[], Results]
Record = Callable[[Replay], Replay]  # work on buffers that stay in place → what does it again, perhaps into the same results
VARIABLE = "HEADCOUNT_GPU_GRAPHS"


def recording(device: torch.device) -> Record:
    """cuda_graph on a GPU, `directly` on the CPU or where HEADCOUNT_GPU_GRAPHS is 0; EngineError where it is neither 0 nor 1."""
    graphs = os.environ.get(VARIABLE, "1")
    if graphs not in ("0", "1"):
        hint = "1, as without it: decode steps are CUDA graphs; 0: they start their kernels one by one, as compute-sanitizer needs it"
        raise EngineError(Problem(VARIABLE, "0 or 1", repr(graphs)), hint=hint)
    return cuda_graph if device.type == "cuda" and graphs == "1" else directly


def directly(work: Replay) -> Replay:
    """The work itself."""
    return work


def cuda_graph(work: Replay) -> Replay:
    """Run the work once aside, so that every kernel is compiled, then record it on PyTorch's current device; results stay in place."""
    aside: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    # A stream of this device: PyTorch's own for captures is one for all devices, on whichever was current at the first capture.
    with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
        results = work()

    def replay() -> Results:
        graph.replay()
        return results

    return replay
