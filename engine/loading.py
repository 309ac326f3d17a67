"""load and convert: path → checkpoint → checks → backend → Model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engine import checkpoint as checkpoints
from engine.backends.checks import require_finite, require_memory
from engine.backends.choice import build_runner, choose_backend, require_limits
from engine.backends.fold import fold
from engine.backends.plan import compile_stack
from engine.checkpoint.mapping import release
from engine.checkpoint.tokenizer import Tokenizer
from engine.errors import ConversionError, Problem
from engine.formats.base import ConversionReport
from engine.formats.open import open_checkpoint as open_checkpoint
from engine.formats.open import read_path
from engine.model import Explanation as Explanation
from engine.model import Model as Model
from engine_kernels.backends import Wanted, preferred_dtype

AnyPath = str | os.PathLike[str]


def load(
    path: AnyPath,
    *,
    backend: str = "auto",
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    quantization: str | None = None,
    config: AnyPath | Mapping[str, Any] | None = None,
    heads: Any = None,
    check: bool = False,
    masked: bool = False,
    strict: bool = False,
    **options: Any,
) -> Model:
    """Load a model from an engine directory, or from any source format, converted in memory.

    backend: auto, cuda, triton, cpu or torch; named, it runs or is an error.  dtype: float32, bfloat16, float16 (fp32, bf16, fp16), auto =
    bfloat16 on backend cuda, and on cpu where the processor multiplies it directly, else float32.  threads: processor threads, None = the
    backend's own number.  quantization: int8 for every matrix but the embedding and what is tied to it, dtype is then that of all else;
    backends cpu and triton.  heads: as engine.formats.heads.read_heads takes it, intersected with what the model keeps.  check: verify
    every digest of an engine directory.  strict: refuse a key of the configuration that is on no list of the format, else a note.  config,
    options: what a source needs beside its file.  What was guessed or not used stands in model.explain().notes.
    Raises an EngineError for anything wrong in the path, its files or the arguments.
    """
    limits = require_limits(dtype, device, threads, quantization)
    wanted = Wanted(device, dtype if dtype == "auto" else limits.dtype, limits.quantization)
    choose_backend(backend, wanted)  # a name or a device that cannot be is told before a file is read
    checkpoint, report = read_path(path, options, config=config, heads=heads, check=check, masked=masked, strict=strict)
    require_finite(checkpoint, str(path))
    stack = compile_stack(checkpoint.spec)
    choice, reason = choose_backend(backend, replace(wanted, head_dims=stack.head_dims())), "as asked"
    if dtype == "auto":
        preferred, reason = preferred_dtype(choice.name)
        limits = replace(limits, dtype=preferred)
    require_memory(checkpoint, limits, str(path))
    tokenizer = None if checkpoint.tokenizer is None else Tokenizer.from_json(checkpoint.tokenizer, source=str(path))
    runner = build_runner(choice.name, stack, fold(checkpoint), limits)
    release(checkpoint.weights)
    explanation = Explanation(
        path=str(path),
        backend=choice.name,
        refusals=tuple((refusal.name, refusal.reason) for refusal in choice.refusals),
        dtype=limits.dtype,
        dtype_reason=reason,
        device=str(getattr(runner, "device", device)),
        quantization=limits.quantization,
        runner=runner.describe(),
        notes=report.notes,
    )
    return Model(checkpoint, runner, tokenizer, explanation)


def convert(
    source: AnyPath,
    output_dir: AnyPath,
    *,
    format: str = "auto",
    config: AnyPath | Mapping[str, Any] | None = None,
    heads: Any = None,
    force: bool = False,
    strict: bool = False,
    **options: Any,
) -> ConversionReport:
    """Turn a trained, gated or masked checkpoint into a compact engine directory, written whole or not at all.

    force: replace an engine directory that stands there.  All else as for load.  Raises an EngineError, and then nothing was written.
    """
    output = checkpoints.destination(output_dir)
    if os.path.lexists(output) and not force:
        hint = "choose another output directory, or replace it with --force (force=True)"
        raise ConversionError(Problem(str(output), "no such path yet", "one that exists"), hint=hint)
    checkpoint, report = read_path(source, options, format=format, config=config, heads=heads, hashed=True, strict=strict)
    checkpoints.require_outside(source, output)
    require_finite(checkpoint, str(source))
    checkpoints.save(checkpoint, output, force=force)
    return replace(report, output_dir=str(output))
