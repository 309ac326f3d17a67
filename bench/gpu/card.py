"""What the card itself can do: bytes copied, multiplications, and what a node of a graph and a barrier cost."""

from __future__ import annotations

import torch

from bench.gpu import barrier
from bench.gpu.figures import Run
from engine_kernels.gpu_ops import Norm
from engine_kernels.triton_ops.projections import normalise

NODES = 64


def measure(run: Run) -> None:
    run.attempt("copy bandwidth", lambda: _copy(run))
    run.attempt("matmul peak", lambda: _matmul(run))
    run.attempt("cost of a graph node", lambda: _graph_node(run))
    run.attempt("cost of a grid barrier", lambda: barrier.measure(run))


def _copy(run: Run) -> None:
    source = torch.zeros(run.sizes.copied, dtype=torch.int16, device=run.device)
    target = torch.empty_like(source)
    took = run.seconds(lambda: target.copy_(source))
    run.add("card", "copy", **took, bytes_per_second=2 * source.nbytes / took["seconds"])


def _matmul(run: Run) -> None:
    n = run.sizes.square
    a = torch.randn((n, n), device=run.device).to(run.torch_dtype)
    took = run.seconds(lambda: a @ a)
    run.add("card", "matmul", **took, flops=2 * n**3 / took["seconds"])


def _graph_node(run: Run) -> None:
    if run.interpreted:
        run.missing.append("cost of a graph node: the interpreter has no graphs")
        return
    launch, x = run.launcher(), torch.zeros((1, 512), device=run.device)
    norm = Norm(x[0], x[0], 1e-5)
    times = {}
    for nodes in (1, 1 + NODES):
        normalise(launch, x, norm)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(nodes):
                normalise(launch, x, norm)
        times[nodes] = run.seconds(graph.replay)["seconds"]
    run.add("card", "graph node", seconds=(times[1 + NODES] - times[1]) / NODES)
