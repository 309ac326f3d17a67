"""Whatever is wrong with an input: one clear error, the same from Python and from the command, exit status 1 and nothing written."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engine
from engine import checkpoint
from engine.checkpoint.tensor_file import read_tensors, write_tensors
from engine.errors import CheckpointError, ConversionError, EngineError, InputError, SpecMismatch
from tests.support.command import SOURCE, headcount, nothing_written, refused

torch = pytest.importorskip("torch")
ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"


def rewritten(path: Path, **changed: Any) -> Path:
    """A copy of a PyTorch file beside it with some tensors of its state dict set, or removed where None."""
    content = torch.load(path, weights_only=True)
    state = next((content[key] for key in ("network", "model") if key in content), content)
    for name, value in changed.items():
        if value is None:
            del state[name]
        else:
            state[name] = value
    torch.save(content, path)
    return path


def edited(path: Path, change: Any) -> Path:
    """A JSON file after `change` of its value."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    return path


# --- files


@pytest.mark.parametrize("verb", ["convert", "inspect", "verify", "generate", "score"])
def test_missing_file(verb: str, tmp_path: Path) -> None:
    path = tmp_path / "nothing.ckpt"
    (tmp_path / "text").write_text("abc")
    rest = {"convert": [tmp_path / "out"], "verify": ["--against", path], "generate": ["--prompt", "a"], "score": [tmp_path / "text"]}
    refused(path, tmp_path, "no such file", "nothing.ckpt", kind=ConversionError)
    with nothing_written(tmp_path):
        done = headcount(verb, path, *rest.get(verb, []))
    assert (done.status, done.out) == (1, "") and done.err.startswith(
        "ConversionError: source: expected a checkpoint file, found no such file"
    )


def test_several_checkpoints_in_a_directory(source: Path, tmp_path: Path) -> None:
    shutil.copy(source, source.parent / "other.pt")
    refused(source.parent, tmp_path, "exactly one checkpoint", "checkpoint.ckpt, other.pt", kind=ConversionError)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".safetensors"])
@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.999])
def test_empty_or_truncated_source(suffix: str, share: float, source: Path, tmp_path: Path) -> None:
    path = source.with_suffix(suffix)
    if suffix == ".safetensors":
        write_tensors(path, SOURCE.state())
    else:
        source.rename(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    said = "an empty file" if share == 0 else "damaged"
    refused(path, tmp_path, said, path.name, kind=ConversionError)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.999])
def test_empty_or_truncated_engine_directory(file: str, share: float, compact: Path, tmp_path: Path) -> None:
    path = compact / file
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    recognised = file == "model.safetensors" or share >= 0.3
    refused(compact, tmp_path, file if recognised else "", kind=CheckpointError if recognised else EngineError)


@pytest.mark.parametrize("change", [-4, 4])
def test_records_of_other_lengths_than_the_pickle_says(change: int, source: Path, tmp_path: Path) -> None:
    """The archive is sound; torch maps it, takes the pickle's word, and would show a record's neighbours."""
    with zipfile.ZipFile(source) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    name = max((name for name in records if "/data/" in name), key=lambda name: len(records[name]))
    records[name] = records[name][:change] if change < 0 else records[name] + bytes(change)
    with zipfile.ZipFile(source, "w") as archive:
        for name, record in records.items():
            archive.writestr(name, record)
    refused(source, tmp_path, "as long as the records they lie in", "damaged", kind=ConversionError)


class Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("import pathlib; pathlib.Path('it-ran').touch()",)


@pytest.mark.parametrize("content", [{"network": {"a": torch.ones(2)}, "extra": Runs()}, torch.nn.Linear(2, 2), Runs()], ids=type)
def test_pickle_with_code_is_never_run(content: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "model.pt")
    refused(
        tmp_path / "model.pt", tmp_path, "runs code", "it was not run", "torch.save(model.state_dict(), 'model.pt')", kind=ConversionError
    )
    assert not (tmp_path / "it-ran").exists()


# --- tensors


@pytest.mark.parametrize("dtype", ["int64", "int8", "bool", "complex64"])
def test_weights_that_are_no_floating_point_numbers(dtype: str, source: Path, tmp_path: Path) -> None:
    name = "layers.0.attn.q_proj.weight.data"
    rewritten(source, **{name: torch.ones(12, 12).to(getattr(torch, dtype))})
    refused(source, tmp_path, f"{name}: expected float32, float64, float16 or bfloat16, found {dtype}", kind=ConversionError)


@pytest.mark.parametrize("dtype", ["int8", "float64", "float8", "", "bf 16"])
def test_dtype_that_no_backend_runs(dtype: str, compact: Path, source: Path) -> None:
    for path in (compact, source):
        with pytest.raises(InputError, match="dtype: expected"):
            engine.load(path, dtype=dtype)
        for verb in (["generate", path, "--prompt", "a"], ["score", path, "-"], ["verify", path, "--against", source], ["inspect", path]):
            done = headcount(*verb, "--dtype", dtype, given="abc")
            assert (done.status, done.out) == (1, "") and done.err.startswith("InputError: dtype: expected")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(value: float, source: Path, compact: Path, tmp_path: Path) -> None:
    weight = torch.zeros(12, 12)
    weight[3, 5] = value
    weights = {name: array.copy() for name, array in read_tensors(compact / "model.safetensors").items()}
    names = [name for name in weights if name.endswith("attention.output")]
    for name in names:
        weights[name].flat[-1] = value
    (compact / "model.safetensors").unlink()
    write_tensors(compact / "model.safetensors", weights)
    with pytest.raises(SpecMismatch) as caught:
        engine.load(compact)
    assert len(names) == len(caught.value.problems) == 2 and all(name in str(caught.value) for name in names)
    with nothing_written(tmp_path):
        assert headcount("convert", compact, tmp_path / "out").err == f"SpecMismatch: {caught.value}\n"
    places = [f"layers.{index}.attn.k_proj.weight.data" for index in range(2)]
    rewritten(source, **{place: weight for place in places})
    refused(source, tmp_path, *(f"{place}[3, 5]: expected a finite number, found {value}" for place in places), kind=ConversionError)


@pytest.mark.parametrize(
    ("name", "file", "missing", "wrong"),
    [
        ("aiha-char", "checkpoint.ckpt", "layers.1.attn.k_proj.weight.data", "layers.0.attn.mem_k.data"),
        ("fair-pers", "checkpoint.pt", "layers.1.attn.proj_key.weight", "layers.0.attn.proj_out.weight"),
        ("txl", "model.pt", "layers.1.dec_attn.o_net.weight", "layers.0.dec_attn.qkv_net.weight"),
    ],
)
def test_missing_extra_and_misshapen_tensors_are_reported_together(name: str, file: str, missing: str, wrong: str, tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / name, tmp_path / name)
    path = tmp_path / name / file
    content = torch.load(path, weights_only=True)
    state = next((content[key] for key in ("network", "model") if key in content), content)
    missing, wrong = (next(key for key in state if key.endswith(end)) for end in (missing, wrong))
    rewritten(path, **{missing: None, wrong: torch.zeros(3, 1, 2), "layers.0.surplus": torch.zeros(2)})
    text = refused(path, tmp_path, "layers.0.surplus: expected no such tensor", "found [3, 1, 2]", "found nothing", kind=ConversionError)
    for end in (missing, wrong):
        assert f"{end.removeprefix('module.').removeprefix('network.')}: expected [" in text
    assert len(text.splitlines()) <= 5


def test_engine_directory_with_missing_extra_and_misshapen_tensors(compact: Path, tmp_path: Path) -> None:
    weights = dict(read_tensors(compact / "model.safetensors"))
    del weights["layers.0.attention_norm"]
    weights["layers.1.attention_norm"] = np.zeros(13, np.float32)
    weights["surplus"] = np.zeros((2, 2), np.float32)
    write_tensors(compact / "new", weights)
    (compact / "new").replace(compact / "model.safetensors")
    said = ("layers.0.attention_norm: expected [12], found no such tensor", "layers.1.attention_norm: expected [12], found [13]")
    refused(
        compact,
        tmp_path,
        *said,
        "surplus: expected no such tensor in this spec, found [2, 2]",
        "converted by aiha-lab 1",
        kind=SpecMismatch,
    )


# --- configuration


@pytest.mark.parametrize(
    ("name", "file", "change", "said"),
    [
        (
            "aiha-char",
            "config.json",
            lambda c: c["model"].update(num_heads=4, hidden_dim=64),
            ["num_heads: expected 2", "hidden_dim: expected 32"],
        ),
        ("aiha-char", "config.json", lambda c: c["model"].update(num_layers=3), ["num_layers: expected 2 (layers in the file), found 3"]),
        ("fair-pers", "args.json", lambda c: c.update(nheads=5, attn_span=161), ["nheads: expected 4", "attn_span: expected 160"]),
        ("txl", "args.json", lambda c: c.update(d_model=65, n_token=91), ["d_model: expected 64", "n_token: expected 90"]),
        ("aiha-char", "config.json", lambda c: c["dataloader"].clear(), ["option mem_length"]),
        ("txl", "args.json", lambda c: c.update(mem_lenn=c.pop("mem_len")), ["config mem_lenn", "such as mem_len"]),
    ],
)
def test_configuration_that_contradicts_the_file_or_says_too_little(
    name: str, file: str, change: Any, said: list[str], tmp_path: Path
) -> None:
    shutil.copytree(FIXTURES / name, tmp_path / name)
    edited(tmp_path / name / file, change)
    refused(tmp_path / name, tmp_path, *said, kind=ConversionError)


def test_options_that_are_none_or_wrong(source: Path, compact: Path, tmp_path: Path) -> None:
    refused(source, tmp_path, "option mem_len: expected one of", "mem_length", mem_len=3, kind=ConversionError)
    refused(source, tmp_path, "mem_length: expected an integer of at least 0", mem_length=-1, kind=ConversionError)
    refused(source, tmp_path, "no-such.json", config=tmp_path / "no-such.json", kind=ConversionError)
    refused(compact, tmp_path, "option mem_length: expected nothing", mem_length=3, kind=InputError)
    for function, name in ((engine.load, "format"), (lambda p, **o: engine.convert(p, tmp_path / "out", **o), "masked")):
        with pytest.raises(InputError, match=f"option {name}"):
            function(source, **{name: "fair"})


@pytest.mark.parametrize("version", [0, 2, "1", 1.0, True, None, [1], {}, 10**30])
def test_unknown_format_version(version: Any, compact: Path, tmp_path: Path) -> None:
    edited(compact / "config.json", lambda config: config.update(format_version=version))
    refused(compact, tmp_path, "format_version: expected 1, found", "convert the source again", kind=CheckpointError)


def test_unknown_and_missing_fields(compact: Path, tmp_path: Path) -> None:
    before = (compact / "config.json").read_bytes()
    edited(compact / "config.json", lambda config: config.update(rotary=3, provenance=[]))
    refused(compact, tmp_path, "rotary: expected no such field, found 3", "provenance: expected an object", kind=CheckpointError)
    (compact / "config.json").write_bytes(before)

    def spoil(config: Any) -> None:
        layer = config["spec"]["layers"][1]
        layer["attention"]["windows"] = layer["attention"].pop("window")
        layer["attention"]["persistent"] = "5"
        layer["norm"] = "batch"
        config["spec"]["head"]["kind"] = "Softmax"

    edited(compact / "config.json", spoil)
    places = (
        "spec.layers[1].attention.windows: expected no such field",
        "spec.layers[1].attention.window: expected a value, found nothing",
    )
    more = ("spec.layers[1].attention.persistent: expected an integer", "spec.layers[1].norm: expected 'layer' or 'rms'", "spec.head.kind")
    refused(compact, tmp_path, *places, *more, kind=SpecMismatch)


def test_spec_that_names_other_heads_than_the_weights_have(compact: Path, tmp_path: Path) -> None:
    def spoil(config: Any) -> None:
        attention = config["spec"]["layers"][0]["attention"]
        attention["kept"], attention["kv_of"] = [0, 1, 2], [0, 1, 2]

    edited(compact / "config.json", spoil)
    refused(compact, tmp_path, "layers.0.attention.query: expected [12, 12] (3 kept heads × 4), found", kind=SpecMismatch)


def test_window_longer_than_the_position_table(source: Path, compact: Path, tmp_path: Path) -> None:
    refused(source, tmp_path, "mem_length + 1: expected at most 17, the rows of pos_emb, found 18", mem_length=17, kind=ConversionError)
    edited(compact / "config.json", lambda config: config["spec"]["layers"][0]["attention"].update(window=18))
    refused(compact, tmp_path, "window: expected at most 17 keys, the rows of the position table, found 18", kind=SpecMismatch)


# --- digests


def test_digest_that_does_not_match(source: Path, compact: Path, tmp_path: Path) -> None:
    data = bytearray((compact / "model.safetensors").read_bytes())
    data[-1] ^= 1  # an exponent: another number, finite still
    (compact / "model.safetensors").write_bytes(data)
    engine.load(compact).close()  # which is what check=True is for
    with nothing_written(tmp_path):
        with pytest.raises(CheckpointError, match=r"expected digest [0-9a-f]{64}, found [0-9a-f]{64}"):
            engine.load(compact, check=True)
        with pytest.raises(CheckpointError, match="digest"):
            checkpoint.read(compact, check=True)
        done = headcount("verify", compact, "--against", source)
    assert (done.status, done.out) == (1, "") and "expected digest" in done.err and "config.json" in done.err
