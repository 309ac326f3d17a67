"""load, convert and export: path → checkpoint → checks → backend → Model."""

from __future__ import annotations

import importlib
import mmap
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from engine import checkpoint as checkpoints
from engine.backends.fold import fold
from engine.backends.plan import compile_stack
from engine.backends.runner import Limits, Runner
from engine.checkpoint import Checkpoint, Weights
from engine.checkpoint.surgery import Pruned, mask, prune
from engine.checkpoint.tokenizer import Tokenizer
from engine.errors import BackendUnavailable, CheckpointError, ConversionError, EngineError, InputError, Problem, SpecMismatch
from engine.export.hugging_face import ExportReport, export_hugging_face
from engine.export.onnx_graph import encoder_graph
from engine.formats.base import ConversionReport
from engine.formats.heads import read_heads, require_heads
from engine.formats.read import read_source
from engine.model import Explanation as Explanation
from engine.model import Model as Model
from engine.spec.cost import model_cost
from engine_kernels import backends, native
from engine_kernels.errors import KernelError

AnyPath = str | os.PathLike[str]
DTYPES = {name: name for name in ("float32", "bfloat16", "float16")} | {
    "auto": "float32",
    "fp32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
}
RUNNERS = {  # backend → the module whose `build` makes its Runner
    "cuda": "engine.backends.gpu.cuda",
    "triton": "engine.backends.gpu.triton",
    "cpu": "engine.backends.cpu",
    "torch": "engine.backends.torch.runner",
}


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
    **options: Any,
) -> Model:
    """Load a model from an engine directory, or from any source format, converted in memory.

    backend: auto, cuda, triton, cpu or torch; named, it runs or is an error.  dtype: float32, bfloat16, float16 (fp32, bf16, fp16), auto =
    bfloat16 on backend cuda, and on cpu where the processor multiplies it directly, else float32.  threads: processor threads, None = the
    backend's own number.  quantization: int8 for every matrix but the embedding and what is tied to it, dtype is then that of all else;
    backend cpu.  heads: as engine.formats.heads.read_heads takes it, intersected with what the model keeps.  check: verify every digest of
    an engine directory.  config, options: what a source needs beside its file.
    Raises an EngineError for anything wrong in the path, its files or the arguments.
    """
    limits = Limits(dtype=_dtype(dtype), device=device, threads=_threads(threads), quantization=_quantization(quantization))
    wanted = backends.Wanted(device, dtype if dtype == "auto" else limits.dtype, limits.quantization)
    _backend(backend, wanted)  # a name or a device that cannot be is told before a file is read
    checkpoint, _ = _read(path, "auto", config, heads, options, check=check, masked=masked)
    require_finite(checkpoint, str(path))
    stack = compile_stack(checkpoint.spec)
    choice, reason = _backend(backend, replace(wanted, head_dims=stack.head_dims())), "as asked"
    if dtype == "auto":
        preferred, reason = backends.preferred_dtype(choice.name)
        limits = replace(limits, dtype=preferred)
    _require_memory(checkpoint, limits, str(path))
    tokenizer = None if checkpoint.tokenizer is None else Tokenizer.from_json(checkpoint.tokenizer, source=str(path))
    runner: Runner = importlib.import_module(RUNNERS[choice.name]).build(stack, fold(checkpoint), limits)
    _release(checkpoint.weights)
    explanation = Explanation(
        path=str(path),
        backend=choice.name,
        refusals=tuple((refusal.name, refusal.reason) for refusal in choice.refusals),
        dtype=limits.dtype,
        dtype_reason=reason,
        device=str(getattr(runner, "device", device)),
        quantization=limits.quantization,
        runner=runner.describe(),
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
    **options: Any,
) -> ConversionReport:
    """Turn a trained, gated or masked checkpoint into a compact engine directory, written whole or not at all.

    force: replace an engine directory that stands there.  All else as for load.  Raises an EngineError, and then nothing was written.
    """
    output = checkpoints.destination(output_dir)
    if os.path.lexists(output) and not force:
        hint = "choose another output directory, or replace it with --force (force=True)"
        raise ConversionError(Problem(str(output), "no such path yet", "one that exists"), hint=hint)
    checkpoint, report = _read(source, format, config, heads, options, check=False)
    if _inside(Path(source), output):
        raise ConversionError(Problem("output directory", f"a place that does not hold the source {source}", str(output)))
    require_finite(checkpoint, str(source))
    checkpoints.save(checkpoint, output, force=force)
    return replace(report, output_dir=str(output))


def export_hf(
    path: AnyPath,
    output_dir: AnyPath,
    *,
    config: AnyPath | Mapping[str, Any] | None = None,
    heads: Any = None,
    force: bool = False,
    **options: Any,
) -> ExportReport:
    """Write a model that came from a Hugging Face directory back as transformers 4 writes it, heads cut out and named in `pruned_heads`.

    path: an engine directory or such a source; config, heads, options as for load; force replaces an exported directory. Raises an
    EngineError, and then nothing was written.
    """
    checkpoint = open_checkpoint(path, config=config, heads=heads, **options)
    output = checkpoints.destination(output_dir)
    if _inside(Path(path), output):
        raise ConversionError(Problem("output directory", f"a place that does not hold the source {path}", str(output)))
    require_finite(checkpoint, str(path))
    return export_hugging_face(checkpoint, output, force=force)


def export_onnx(
    path: AnyPath,
    output: AnyPath,
    *,
    config: AnyPath | Mapping[str, Any] | None = None,
    heads: Any = None,
    force: bool = False,
    **options: Any,
) -> Path:
    """Write an encoder as one .onnx file in float32, each layer with its own number of heads; the path written.

    Inputs input_ids, attention_mask, token_type_ids (where the model has types) int64 [batch, sequence]; output logits, or without a head
    last_hidden_state. config, heads, options as for load; force replaces a file. Raises an EngineError, and then nothing was written.
    """
    target = checkpoints.destination(output)
    if target.is_dir() or (os.path.lexists(target) and not force):
        hint = "choose another output file, or replace a file with --force (force=True)"
        raise CheckpointError(Problem(str(target), "no such file yet", "a directory" if target.is_dir() else "one that exists"), hint=hint)
    checkpoint = open_checkpoint(path, config=config, heads=heads, **options)
    require_finite(checkpoint, str(path))
    data = encoder_graph(compile_stack(checkpoint.spec), fold(checkpoint))
    temporary = target.with_name(f".{target.name}.headcount-new-{secrets.token_hex(4)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(data)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{target}: cannot be written: {error}", hint="nothing was written; choose another output file") from error
    return target


def open_checkpoint(
    path: AnyPath, *, config: AnyPath | Mapping[str, Any] | None = None, heads: Any = None, check: bool = False, **options: Any
) -> Checkpoint:
    """The spec and weights that load would run, with nothing built."""
    return _read(path, "auto", config, heads, options, check=check)[0]


def require_finite(checkpoint: Checkpoint, source: str) -> None:
    """Raise SpecMismatch naming every tensor that holds a NaN or an infinity."""
    problems = [
        Problem(name, "finite numbers", "NaN or infinity") for name, array in checkpoint.weights.items() if not native.all_finite(array)
    ]
    if problems:
        raise SpecMismatch(problems, source=source, hint="the training diverged or the file is damaged: take an earlier checkpoint")


def _read(
    path: AnyPath, format: str, config: Any, heads: Any, options: Mapping[str, Any], *, check: bool, masked: bool = False
) -> tuple[Checkpoint, ConversionReport]:
    """An engine directory as it stands, or a source converted in memory."""
    if not isinstance(path, (str, os.PathLike)) or not str(path):
        raise InputError(Problem("path", "a file or a directory", repr(path)))
    if clash := [name for name in ("path", "format", "masked") if name in options]:  # parameters of read_source, no settings
        raise InputError([Problem(f"option {name}", "no such option here", repr(options[name])[:60]) for name in clash])
    if format != "auto" or not checkpoints.is_engine_directory(path):
        return read_source(path, format=format, config=config, heads=heads, masked=masked, **options)
    foreign = ([] if config is None else [Problem("config", "nothing: the directory has its own", repr(config)[:60])]) + [
        Problem(f"option {name}", "nothing: an engine directory takes none", repr(value)[:60]) for name, value in options.items()
    ]
    if foreign:
        raise InputError(foreign, source=str(path))
    checkpoint = checkpoints.read(path, check=check)
    if heads is not None:
        checkpoint = _with_heads(checkpoint, heads, mask if masked else prune)
        require_heads(checkpoint.spec, str(path))
    attentions = [layer.attention for layer in checkpoint.spec.layers]
    report = ConversionReport(
        source=str(path),
        format="engine",
        output_dir=None,
        source_heads=tuple(a.source_heads for a in attentions),
        kept=tuple(a.kept for a in attentions),
        parameters=sum(prod(shape) for shape in checkpoint.spec.tensors().values()),
    )
    return checkpoint, report


def _with_heads(checkpoint: Checkpoint, heads: Any, cut: Callable[..., Checkpoint]) -> Checkpoint:
    """Only the chosen heads among those the checkpoint still has, by the source's numbers; the others cut by prune or mask."""
    attentions = [layer.attention for layer in checkpoint.spec.layers]
    choice = read_heads(heads, len(attentions), [a.source_heads for a in attentions])
    scales = choice.scales or tuple((1.0,) * len(kept) for kept in choice.kept)
    left = [
        [(head, scale) for head, scale in zip(kept, row, strict=True) if head in a.kept]
        for a, kept, row in zip(attentions, choice.kept, scales, strict=True)
    ]
    return cut(checkpoint, [[head for head, _ in row] for row in left], [[scale for _, scale in row] for row in left])


def _dtype(name: str) -> str:
    if not isinstance(name, str) or name not in DTYPES:
        raise InputError(Problem("dtype", ", ".join(sorted(DTYPES)), repr(name)))
    return DTYPES[name]


def _quantization(name: str | None) -> str | None:
    if name is not None and (not isinstance(name, str) or name not in backends.QUANTIZATIONS):
        raise InputError(Problem("quantization", "None or " + ", ".join(backends.QUANTIZATIONS), repr(name)))
    return name


def _threads(threads: int | None) -> int | None:
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= 4096):
        raise InputError(Problem("threads", "an integer of at least 1, or None", repr(threads)))
    return threads


def _backend(backend: str, wanted: backends.Wanted) -> backends.Choice:
    for name, value in (("backend", backend), ("device", wanted.device)):
        if not isinstance(value, str):
            raise InputError(Problem(name, "a name", repr(value)))
    try:
        return backends.resolve(backend, wanted)
    except KernelError as error:
        raise BackendUnavailable(Problem(error.argument, error.expected, error.got)) from None


def _require_memory(checkpoint: Checkpoint, limits: Limits, source: str) -> None:
    """Raise EngineError when weights, one sequence's cache and the rows by distance cannot fit into the machine's memory."""
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return  # a system that does not say
    cost = model_cost(checkpoint.spec, dtype=limits.dtype, quantization=limits.quantization, rows=1)
    attentions = [layer.attention for layer in checkpoint.spec.layers]
    rows_by_distance = sum(4 * a.heads * a.head_dim * (a.reach or 0) for a in attentions)  # formed at load in float32
    needed = cost.weight_bytes + cost.kv_bytes + rows_by_distance
    if needed > physical:
        parts = {"of weights": cost.weight_bytes, "of keys and values": cost.kv_bytes, "of rows by distance": rows_by_distance}
        expected = f"at most {physical / 2**30:.1f} GiB, the memory of this machine"
        found = f"{needed / 2**30:.1f} GiB: " + ", ".join(f"{size / 2**30:.1f} {what}" for what, size in parts.items())
        raise EngineError(Problem("memory", expected, found), source=source, hint="load it in bfloat16, or keep fewer heads")


def _release(weights: Weights) -> None:
    """Let go of the memory that holds mapped files, now that the backend has its own copy; what is read again comes from the file."""
    while isinstance(weights, Pruned):
        weights = weights.whole
    mapped = {id(file): file for array in weights.values() if (file := _mapping(array)) is not None}
    for file in mapped.values():
        file.madvise(mmap.MADV_DONTNEED)


def _mapping(array: np.ndarray) -> mmap.mmap | None:
    """The file an array is mapped from, where it is and the system can be told."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED") else None


def _inside(source: Path, output: Path) -> bool:
    """Whether replacing `output` would take the source away."""
    source, output = source.resolve(), output.resolve()
    return output == source or output in source.parents
