"""`latency` and `throughput` of a whole model through its public API, with vLLM's measures, printed lines and JSON keys."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.errors import EngineError, InputError, Problem
from engine.formats.open import open_checkpoint
from engine.measure.clock import bar, percentiles
from engine.measure.gate import LOG_PROB_LIMIT, Gate
from engine.measure.provenance import Digests, provenance
from engine.measure.tokens import random_ids
from engine.model import Model
from engine_kernels.testing import EPS, difference

GATE_TOKENS = 8


@dataclass(frozen=True)
class Lengths:
    """Tokens in and out of each sequence."""

    input_len: int
    output_len: int


def latency(model: Model, lengths: Lengths, *, batch_size: int, warmup: int, iterations: int, quiet: bool = False) -> dict[str, Any]:
    """Seconds to generate `output_len` tokens after each of `batch_size` prompts: avg_latency, std_latency, latencies, percentiles."""
    prompts = _prompts(model, batch_size, lengths)
    samples = []
    with bar("Bench iterations", warmup + iterations, quiet=quiet) as advance:
        for index in range(warmup + iterations):
            start = time.perf_counter()
            model.generate(prompts, max_new_tokens=lengths.output_len)
            if index >= warmup:
                samples.append(time.perf_counter() - start)
            advance()
    return {
        "avg_latency": float(np.mean(samples)),
        "std_latency": float(np.std(samples)),
        "latencies": samples,
        "percentiles": percentiles(samples),
    }


def throughput(model: Model, lengths: Lengths, *, num_prompts: int, quiet: bool = False) -> dict[str, Any]:
    """All prompts at once, as many decoded together as the engine takes: requests and tokens per second."""
    prompts = _prompts(model, num_prompts, lengths)
    model.generate(prompts[:1], max_new_tokens=min(2, lengths.output_len))  # first use is slower
    with bar("Generating", 1, quiet=quiet) as advance:
        start = time.perf_counter()
        done = model.generate(prompts, max_new_tokens=lengths.output_len)
        elapsed = time.perf_counter() - start
        advance()
    output = sum(len(completion.ids) for completion in done)
    total = output + sum(len(prompt) for prompt in prompts)
    return {
        "elapsed_time": elapsed,
        "num_requests": num_prompts,
        "total_num_tokens": total,
        "requests_per_second": num_prompts / elapsed,
        "tokens_per_second": total / elapsed,
        "output_tokens_per_second": output / elapsed,
    }


def latency_lines(found: dict[str, Any]) -> list[str]:
    """What vLLM prints."""
    lines = [f"Avg latency: {found['avg_latency']} seconds", f"Std latency: {found['std_latency']} seconds"]
    return lines + [f"{percent}% percentile latency: {seconds} seconds" for percent, seconds in found["percentiles"].items()]


def throughput_line(found: dict[str, Any]) -> str:
    """What vLLM prints."""
    requests, total, output = (found[name] for name in ("requests_per_second", "tokens_per_second", "output_tokens_per_second"))
    return f"Throughput: {requests:.2f} requests/s, {total:.2f} total tokens/s, {output:.2f} output tokens/s"


def require_right(model: Model, lengths: Lengths) -> Gate:
    """The gate: tokens generated with the cache are those of the full forward pass, log-probabilities too; raises EngineError if not."""
    if model.spec.task != "causal_lm":
        expected = "a language model: what is timed is the generation of tokens"
        raise InputError(Problem("model", expected, f"an encoder, task {model.spec.task}"), hint="python -m bench encoder times encoders")
    found = _generation_gate(model, lengths)
    if not found.passed:
        text = f"the gate did not pass, so nothing was timed: log-probabilities differ by {found.difference:.3g}, allowed {found.limit:.3g}"
        raise EngineError(text, hint=f"compared with {found.against}: run `headcount verify` to see where they part")
    return found


def _generation_gate(model: Model, lengths: Lengths) -> Gate:
    prompt = _prompts(model, 1, lengths)[0]
    tokens = list(model.stream(prompt, max_new_tokens=min(GATE_TOKENS, lengths.output_len)))
    ids = [token.id for token in tokens]
    rows = model.log_probs([prompt + ids[:-1]])[0, len(prompt) - 1 :]  # [tokens, vocab], each before its token
    expected = rows[np.arange(len(ids)), ids]
    apart = difference([token.logprob for token in tokens], expected)
    short_of_best = difference(expected, rows.max(axis=1))
    explained = model.explain()
    dtype = explained.dtype if explained.quantization is None else "bfloat16"  # the rule's own dtype for int8
    limit = LOG_PROB_LIMIT if dtype == "float32" else 4 * EPS[dtype] * float(np.abs(expected).max())
    return Gate(float(np.maximum(apart, short_of_best)), limit, "the full forward pass of the same model")


def described(path: str, model: Model, found: Gate, options: dict[str, Any]) -> dict[str, Any]:
    """What a figure of this model is to be judged by: gate, weights, machine, versions, commit, threads, precision."""
    explained = model.explain()
    return {
        "gate": found.to_dict(),
        "digest": Digests().of(open_checkpoint(path, **options).weights),
        "heads": [layer.attention.heads for layer in model.spec.layers],
        "backend": explained.backend,
        "dtype": explained.dtype,
        "quantization": explained.quantization,
        "threads": explained.runner.get("threads"),
        **provenance(),
    }


def _prompts(model: Model, count: int, lengths: Lengths) -> Sequence[list[int]]:
    """The same random tokens every time."""
    prompts: list[list[int]] = random_ids(model.spec.vocab, (count, lengths.input_len), seed=0).tolist()
    return prompts
