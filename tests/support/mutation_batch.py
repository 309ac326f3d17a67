"""A batch of mutants in a process of its own: `python -m tests.support.mutation_batch KIND FIRST COUNT` prints what became of them as JSON.

A crash is this process's exit status, a hang its stack after PATIENCE seconds; neither takes the tests with it.
"""

from __future__ import annotations

import faulthandler
import json
import os
import shutil
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

import engine
from engine import checkpoint
from engine import loading as api
from engine.errors import CheckpointError, EngineError
from tests.support.mutate import edit_json, spoil, spoil_header, spoil_member
from tests.support.peak_memory import peak_bytes
from tests.support.sources import AihaSource, random_gates

FIXTURES = Path(__file__).parents[1] / "fixtures"
PATIENCE = 30.0  # seconds for one mutant on a busy machine; the usual one takes milliseconds
FORM = {  # an error that came through one of these is one of the file's form, not of what it says
    ("pickles.py", "_torch_load"),
    ("pickles.py", "_check_file"),
    ("pickles.py", "_check_records"),
    ("tensor_file.py", "_read_header"),
    ("strict_json.py", "parse_json"),
    ("strict_json.py", "read_bytes"),
    ("tokenizer.py", "from_json"),
}

Spoil = Callable[[Random], Path]  # writes the next mutant, returns what to load


def fixture(name: str) -> Callable[[Path], Path]:
    """A copy of a fixture's checkpoint and configuration; returns the checkpoint."""

    def prepare(folder: Path) -> Path:
        for file in (FIXTURES / name).iterdir():
            if file.suffix != ".npz":
                shutil.copy(file, folder)
        return next(file for file in folder.iterdir() if file.suffix in (".ckpt", ".pt"))

    return prepare


def small(folder: Path) -> Path:
    """A source with all there is: clusters, gates, a vocabulary."""
    source = AihaSource(cutoffs=(6, 13), div_value=2, gates=random_gates(2, 3))
    path = source.write(folder)
    (folder / "config.json").write_text(json.dumps({**source.config(), "chars": [chr(97 + i) for i in range(source.vocab)]}))
    return path


def legacy(folder: Path) -> Path:
    """The same in torch's format before zip files."""
    import torch

    path = small(folder)
    torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False)
    return path


def directory(folder: Path) -> Path:
    source = folder / "source"
    source.mkdir()
    api.convert(small(source), folder / "model")
    return folder / "model"


def sharded(folder: Path) -> Path:
    """An engine directory whose tensors lie in two files."""
    from engine.checkpoint.tensor_file import write_tensors

    out = directory(folder)
    weights = checkpoint.read(out).weights
    names = sorted(weights)
    files = {name: f"model-{1 + (index % 2)}.safetensors" for index, name in enumerate(names)}
    for file in set(files.values()):
        write_tensors(out / file, {name: weights[name] for name in names if files[name] == file})
    (out / "model.safetensors").unlink()
    (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return out


def bytes_of(prepare: Callable[[Path], Path], file: str | None, damage: Callable[[bytes, Random], bytes]) -> Callable[[Path], Spoil]:
    """Mutants of one file of what is loaded; None = the checkpoint itself."""

    def start(folder: Path) -> Spoil:
        loaded = prepare(folder)
        target = loaded if file is None else (loaded if loaded.is_dir() else loaded.parent) / file
        data = target.read_bytes()

        def mutant(random: Random) -> Path:
            target.write_bytes(damage(data, random))
            return loaded

        return mutant

    return start


def fields(data: bytes, random: Random) -> bytes:
    return edit_json(json.loads(data), random)


KINDS: dict[str, Callable[[Path], Spoil]] = {
    "aiha bytes": bytes_of(fixture("aiha-char"), None, spoil),
    "aiha members": bytes_of(fixture("aiha-char"), None, spoil_member),
    "aiha config": bytes_of(small, "config.json", fields),
    "small members": bytes_of(small, None, spoil_member),
    "legacy bytes": bytes_of(legacy, None, spoil),
    "fair members": bytes_of(fixture("fair-pers"), None, spoil_member),
    "fair config": bytes_of(fixture("fair-pers"), "args.json", fields),
    "txl members": bytes_of(fixture("txl"), None, spoil_member),
    "txl config": bytes_of(fixture("txl"), "args.json", fields),
    "directory tensors": bytes_of(directory, "model.safetensors", spoil),
    "directory header": bytes_of(directory, "model.safetensors", spoil_header),
    "directory config": bytes_of(directory, "config.json", fields),
    "directory config bytes": bytes_of(directory, "config.json", spoil),
    "directory tokenizer": bytes_of(directory, "tokenizer.json", spoil),
    "directory tokenizer fields": bytes_of(directory, "tokenizer.json", fields),
    "shard index": bytes_of(sharded, "model.safetensors.index.json", fields),
}


def outcome(path: Path, random: Random) -> str:
    """What loading gave; raises what is no EngineError, and AssertionError where what was loaded is not what the file says."""
    try:
        model = engine.load(path)
    except EngineError as error:
        assert str(error).strip() and len(str(error)) < 200_000
        str(error).encode()  # can be printed
        through = {(Path(frame.filename).name, frame.name) for frame in traceback.extract_tb(error.__traceback__)}
        return ("form" if through & FORM else "content") + f" {type(error).__name__}"
    with model:
        extreme = check_answers(model)
        if path.is_dir():
            check_tensors(path)
        elif random.random() < 0.1:
            check_conversion(path)
    return "loaded, extreme numbers" if extreme else "loaded"


def check_answers(model: engine.Model) -> bool:
    """Log-probabilities of the right shape that add up to one; returns whether extreme weights let them be infinite instead."""
    ids = np.arange(5)[None] % model.spec.vocab
    if model.tokenizer is not None:
        with suppress(EngineError):  # its vocabulary may be another one
            model.generate("abc\n", max_new_tokens=3)
    found = model.log_probs(ids)
    assert found.shape == (1, 5, model.spec.vocab) and found.dtype == np.float32
    largest = max(float(np.abs(array.astype(np.float64)).max()) for array in model._checkpoint.weights.values())  # type: ignore[union-attr]
    if extreme := largest > 100:
        with suppress(EngineError):  # which names the NaN
            model.generate(ids[0], max_new_tokens=2)
    else:
        np.testing.assert_allclose(np.exp(found.astype(np.float64)).sum(-1), 1, atol=1e-3)
        model.generate(ids[0], max_new_tokens=2)
    return extreme


def check_tensors(path: Path) -> None:
    """Bit for bit what the safetensors library reads; with check=True a number that was changed is found."""
    from safetensors import safe_open

    loaded = checkpoint.read(path)
    for file in path.glob("*.safetensors"):
        with safe_open(file, "numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                assert tensors.get_tensor(name).tobytes() == loaded.weights[name].tobytes(), name
    stored = json.loads((path / "config.json").read_text())["digests"]
    intact = all(checkpoint.digest(array) == stored[name] for name, array in loaded.weights.items())
    try:
        checkpoint.read(path, check=True)
        assert intact
    except CheckpointError:
        assert not intact


def check_conversion(path: Path) -> None:
    """The same checkpoint as from the same tensors saved again: nothing but their values decides."""
    import torch

    again = path.parent / "again" / path.name
    again.parent.mkdir(exist_ok=True)
    for file in path.parent.glob("*.json"):
        shutil.copy(file, again.parent)
    torch.save(torch.load(path, map_location="cpu", weights_only=True), again)
    first, second = api.open_checkpoint(path), api.open_checkpoint(again)
    assert first.spec == second.spec and list(first.weights) == list(second.weights)
    assert all(array.tobytes() == second.weights[name].tobytes() for name, array in first.weights.items())


def run(kind: str, first: int, count: int) -> dict[str, Any]:
    found: Counter[str] = Counter()
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        mutant = KINDS[kind](Path(folder))
        for seed in range(first, first + count):
            print(f"{kind} {seed}", file=sys.stderr, flush=True)  # the last line says where a crash was
            faulthandler.dump_traceback_later(PATIENCE, exit=True)
            random = Random(f"{kind} {seed}")
            try:
                found[outcome(mutant(random), random)] += 1
            except BaseException:  # a panic of the tokenizers library is no Exception
                failures.append(f"{kind} {seed}: {traceback.format_exc()[-1500:]}")
            faulthandler.cancel_dump_traceback_later()
    return {"outcomes": found, "failures": failures, "peak_mib": peak_bytes() >> 20}


if __name__ == "__main__":
    faulthandler.enable()
    warnings.simplefilter("ignore")
    os.environ["OMP_NUM_THREADS"] = "1"
    print(json.dumps(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
