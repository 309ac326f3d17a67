"""Inputs that are wrong, one of each kind, and the error each gives: `python -m tests.support.bad_inputs FILE` writes all texts as JSON.

A text names the folder of its input as FOLDER and the repository as REPOSITORY; what libraries say of damaged bytes is left out.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import engine
from engine.checkpoint.tensor_file import read_tensors, write_tensors
from engine.errors import EngineError
from engine.formats.heads import read_heads
from tests.support.command import SOURCE, write_source
from tests.support.hugging_face_sources import Source, encoder, gpt2
from tests.support.sources import write_state

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
Case = Callable[[Path], Any]  # given an empty folder; raises an EngineError

CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    CASES[function.__name__] = function
    return function


def loading(write: Callable[[Path], Path], **given: Any) -> Case:
    return lambda folder: engine.load(write(folder), **given)


def directory(folder: Path) -> Path:
    """An engine directory."""
    engine.convert(write_source(folder / "source"), folder / "compact")
    return folder / "compact"


def edited(write: Callable[[Path], Path], file: str, change: Callable[[Any], object]) -> Callable[[Path], Path]:
    """A JSON file beside the source, or in the directory, after `change` of its value."""

    def write_edited(folder: Path) -> Path:
        path = write(folder)
        target = (path if path.is_dir() else path.parent) / file
        value = json.loads(target.read_text())
        change(value)
        target.write_text(json.dumps(value))
        return path

    return write_edited


def holding(write: Callable[[Path], Path], **files: bytes) -> Callable[[Path], Path]:
    """With other files beside it; __ in a name stands for its dot."""

    def write_with(folder: Path) -> Path:
        path = write(folder)
        for name, data in files.items():
            ((path if path.is_dir() else path.parent) / name.replace("__", ".")).write_bytes(data)
        return path

    return write_with


def fixture(name: str) -> Callable[[Path], Path]:
    return lambda folder: Path(shutil.copytree(FIXTURES / name, folder / name))


def bert(kind: str = "bert", task: str = "ForTokenClassification", drop: str = "", **settings: Any) -> Callable[[Path], Path]:
    """An encoder without the tensors whose names end with `drop`."""

    def write(folder: Path) -> Path:
        source = encoder(kind, task)
        tensors = {name: array for name, array in source.tensors.items() if not drop or not name.endswith(drop)}
        return Source(source.config, tensors).write(folder / "model", **settings)

    return write


def shards(listed: dict[str, str] | None) -> Callable[[Path], Path]:
    """A Hugging Face directory whose tensors lie in one shard, with an index that says `listed`, None the truth."""

    def write(folder: Path) -> Path:
        path = encoder().write(folder / "model")
        (path / "model.safetensors").rename(path / "model-1.safetensors")
        truth = dict.fromkeys(encoder().tensors, "model-1.safetensors")
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": truth if listed is None else truth | listed}))
        return path

    return write


def spoil_spec(config: Any) -> None:
    layer = config["spec"]["layers"][1]
    layer["attention"]["windows"] = layer["attention"].pop("window")
    layer["norm"] = "batch"
    config["spec"]["head"]["kind"] = "Softmax"


def odd_gpt2(**settings: Any) -> Callable[[Path], Path]:
    return lambda folder: gpt2().write(folder / "model", **settings)


SOURCES: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    # files
    "no such file": (lambda folder: folder / "nothing.ckpt", {}),
    "an empty directory": (lambda folder: folder, {}),
    "several checkpoints": (lambda folder: (holding(write_source, other__pt=b"x")(folder), folder)[1], {}),
    "an empty file": (holding(lambda folder: folder / "x.pt", x__pt=b""), {}),
    "an empty safetensors file": (holding(lambda folder: folder / "x.safetensors", x__safetensors=b""), {}),
    "bytes that are no safetensors file": (holding(lambda folder: folder / "x.safetensors", x__safetensors=b"\xff" * 99), {}),
    "tensors of no format": (lambda folder: write_state(folder / "x.pt", {f"h.{i}.w": np.zeros(1, np.float32) for i in range(6)}), {}),
    # configurations and options
    "no configuration": (lambda folder: (write_source(folder), (folder / "config.json").unlink())[0], {}),
    "an empty configuration": (holding(write_source, config__json=b""), {}),
    "a configuration that is a list": (holding(write_source, config__json=b"[1]"), {}),
    "a configuration with a key twice": (holding(write_source, config__json=b'{"a": 1, "a": 2}'), {}),
    "a configuration with NaN": (holding(write_source, config__json=b'{"a": NaN}'), {}),
    "a configuration in other letters": (holding(write_source, config__json=b"\xff"), {}),
    "config= of another type": (write_source, {"config": 7}),
    "config= that is not there": (write_source, {"config": "/no/such/config.json"}),
    "config= that is no JSON": (write_source, {"config": {"model": {1, 2}}}),
    "an option that is no JSON": (write_source, {"mem_length": object()}),
    "an option of another format": (write_source, {"mem_len": 3}),
    "an option below its least": (write_source, {"mem_length": -1}),
    "an option longer than the table": (write_source, {"mem_length": 17}),
    "a parameter as an option": (write_source, {"format": "fair"}),
    "sizes that contradict the file": (
        edited(fixture("aiha-char"), "config.json", lambda c: c["model"].update(num_heads=4, hidden_dim=64)),
        {},
    ),
    "flags that contradict the file": (edited(fixture("fair-pers"), "args.json", lambda c: c.update(nheads=5, attn_span=161)), {}),
    "a misspelled flag": (edited(fixture("txl"), "args.json", lambda c: c.update(mem_lenn=c.pop("mem_len"))), {}),
    # vocabularies
    "too few characters": (write_source, {"config": SOURCE.config() | {"chars": list("abcd")}}),
    "characters that are text": (write_source, {"config": SOURCE.config() | {"chars": "abcd"}}),
    "vocab= that is not there": (write_source, {"vocab": "/no/such/vocab.txt"}),
    "vocab= of another type": (write_source, {"vocab": 7}),
    "a tokenizer of another size": (
        holding(
            lambda folder: (path := write_source(folder), edited(lambda _: path, "config.json", lambda c: c.pop("chars"))(folder))[0],
            tokenizer__json=b'{"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}',
        ),
        {},
    ),
    # engine directories
    "an engine directory with config=": (directory, {"config": "x.json"}),
    "an engine directory with an option": (directory, {"mem_length": 3}),
    "another format_version": (edited(directory, "config.json", lambda c: c.update(format_version=2)), {}),
    "an unknown field": (edited(directory, "config.json", lambda c: c.update(rotary=3, provenance=[])), {}),
    "a spec that is spoilt": (edited(directory, "config.json", spoil_spec), {}),
    "a damaged config.json": (holding(directory, config__json=b'{"format_version": 1'), {}),
    "no tensors": (lambda folder: (path := directory(folder), (path / "model.safetensors").unlink())[0], {}),
    "tensors twice": (holding(directory, **{"model__safetensors__index__json": b"{}"}), {}),
    "a tokenizer in other letters": (holding(directory, tokenizer__json=b"\xff"), {}),
    "a digest that is none": (edited(directory, "config.json", lambda c: c["digests"].update({"final": 3})), {}),
    # heads
    "heads= of a layer there is not": (directory, {"heads": {"7": [0]}}),
    "heads= of a head there is not": (write_source, {"heads": [[0], [9]]}),
    "heads= of another type": (write_source, {"heads": 7}),
    "heads= of another shape": (write_source, {"heads": np.ones((3, 3))}),
    "heads= that is not there": (write_source, {"heads": "/no/such/mask.npy"}),
    "heads= that is no mask": (write_source, {"heads": "mask.txt"}),
    "no head left": (bert(), {"heads": np.zeros((3, 3))}),
    # arguments
    "path that is none": (lambda _: 3, {}),  # type: ignore[arg-type,return-value]
    "dtype": (write_source, {"dtype": "int8"}),
    "threads": (write_source, {"threads": 0}),
    "quantization": (write_source, {"quantization": "int4"}),
    "backend": (write_source, {"backend": None}),
    "device": (write_source, {"device": 0}),
    # Hugging Face
    "a model_type of no architecture": (bert(model_type="albert"), {}),
    "no model_type": (bert("roberta", "Model", model_type=None, architectures=None), {}),
    "tensors that are not the model_type's": (
        lambda folder: Source({"model_type": "bert"}, {"x": np.ones(2, np.float32)}).write(folder / "model"),
        {},
    ),
    "relative positions": (bert(position_embedding_type="relative_key"), {}),
    "a decoder": (bert(is_decoder=True), {}),
    "cross attention": (bert(add_cross_attention=True), {}),
    "narrow embeddings": (bert("electra", "Model", embedding_size=7), {}),
    "an activation": (bert(hidden_act="mish"), {}),
    "a misspelled key": (bert(pruned_head={"0": [1]}), {"strict": True}),
    "a width": (bert(intermediate_size=11), {}),
    "labels": (bert(id2label={"0": "A"}), {}),
    "an architecture of no task": (bert(architectures=["BertForNextSentencePrediction"]), {}),
    "an architecture whose head is not there": (bert(architectures=["BertForMaskedLM"]), {}),
    "the option task": (bert(), {"task": "translation"}),
    "a missing tensor": (bert(drop="layer.1.output.dense.bias"), {}),
    "pruned_heads that the tensors lack": (bert(pruned_heads={"0": [9], "1": [0]}), {}),
    "kept_heads of another length": (bert(kept_heads=[[0]]), {}),
    "per_layer_config with a part left out": (bert(per_layer_config={"1": {"skip": ["attention"]}}), {}),
    "a shard that is not there": (shards({"bert.embeddings.LayerNorm.bias": "model-2.safetensors"}), {}),
    "a shard outside": (shards({"bert.embeddings.LayerNorm.bias": "../model-2.safetensors"}), {}),
    "a tensor the index lacks": (shards({"surplus": "model-1.safetensors"}), {}),
    "GPT-2 of another task": (odd_gpt2(architectures=["GPT2ForSequenceClassification"]), {}),
    "GPT-2 of another width": (odd_gpt2(n_inner=47, n_positions=30), {}),
    "GPT-2 as an encoder": (odd_gpt2(), {"task": "hidden"}),
    "a vocabulary in other letters": (holding(bert(), vocab__txt=b"\xff\xfe"), {}),
    "merges of three": (holding(odd_gpt2(), vocab__json=b"{}", merges__txt=b"a b c\n"), {}),
    "tokenizer settings that are a list": (holding(bert(), vocab__txt=b"[UNK]\n", tokenizer_config__json=b"[]"), {}),
    "a piece model that is none": (holding(bert("xlm-roberta"), **{"sentencepiece__bpe__model": b""}), {}),
    "a token added in the wrong place": (holding(bert(), vocab__txt=b"[UNK]\n", added_tokens__json=b'{"x": 9}'), {}),
}
CASES |= {name: loading(write, **given) for name, (write, given) in SOURCES.items()}


@case
def a_misshapen_and_a_surplus_tensor(folder: Path) -> None:
    compact = directory(folder)
    weights = dict(read_tensors(compact / "model.safetensors"))
    del weights["layers.0.attention_norm"]
    weights["surplus"] = np.zeros((2, 2), np.float32)
    write_tensors(compact / "new", weights)
    (compact / "new").replace(compact / "model.safetensors")
    engine.load(compact)


@case
def weights_that_are_not_finite(folder: Path) -> None:
    compact = directory(folder)
    weights = {name: array.copy() for name, array in read_tensors(compact / "model.safetensors").items()}
    weights["layers.0.attention.output"].flat[-1] = np.nan
    (compact / "model.safetensors").unlink()
    write_tensors(compact / "model.safetensors", weights)
    engine.load(compact)


@case
def a_format_there_is_not(folder: Path) -> None:
    engine.convert(write_source(folder), folder / "out", format="gguf")


@case
def a_format_of_other_tensors(folder: Path) -> None:
    engine.convert(write_source(folder), folder / "out", format="txl")


@case
def masked_as_an_option_of_convert(folder: Path) -> None:
    engine.convert(write_source(folder), folder / "out", masked=True)


@case
def an_output_that_stands(folder: Path) -> None:
    engine.convert(write_source(folder / "source"), folder / "source")


@case
def an_output_that_holds_the_source(folder: Path) -> None:
    engine.convert(directory(folder), folder, force=True)


@case
def all_problems_of_heads(folder: Path) -> None:
    read_heads({3: [0], "x": [], 0: [3, -1, 1, 1], "1": 5}, 3, 3)


@case
def an_object_of_heads_that_is_no_json(folder: Path) -> None:
    (folder / "heads.json").write_text('{"0": [1], "0": [2]}')
    read_heads(folder / "heads.json", 3, 3)


def error_of(name: str, folder: Path) -> str:
    """`Kind: text` of the error a case raises in an empty folder."""
    try:
        CASES[name](folder)
    except EngineError as error:
        text = f"{type(error).__name__}: {error}"
        return text.replace(str(folder), "FOLDER").replace(str(ROOT), "REPOSITORY")
    raise AssertionError(f"{name}: no error")


def main(file: Path) -> None:
    texts = {}
    for name in CASES:
        with tempfile.TemporaryDirectory() as folder:
            texts[name] = error_of(name, Path(folder))
    file.write_text(json.dumps(texts, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
