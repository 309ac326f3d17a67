"""Models of the shapes of mBERT and XLM-R, random weights, through the whole path: convert, rank, apply, run.

`python -m bench.suites.prune.shapes FOLDER FILE…`: makes them in FOLDER, ranks on the first sentences of the labelled FILEs, and prints
what each step took and how far the pruned model is from the dense one with the same heads masked. Several gigabytes of disk and memory.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import engine
from engine import checkpoint as checkpoints
from engine.checkpoint.surgery import mask
from engine.checkpoint.tensor_file import write_tensors
from engine.prune.apply import apply_ranking
from engine.prune.data.labels import labels_of
from engine.prune.data.read import read_sentences
from engine.prune.data.sentences import Sentence
from engine.prune.encoder import with_labels
from engine.prune.rank import SCORES, RankOptions, rank
from engine.prune.select import Budget
from engine.prune.task import DataOptions

SHAPES = {  # of the configurations of bert-base-multilingual-cased and xlm-roberta-base
    "mbert": ("bert", "BertModel", 119547, 512, 2, 0),
    "xlm-r": ("xlm-roberta", "XLMRobertaModel", 250002, 514, 1, 1),
}
HIDDEN, HEADS, LAYERS, WIDTH = 768, 12, 12, 3072
SENTENCES, KEPT = 16, 61


def write_model(folder: Path, name: str, sentences: list[Sentence]) -> None:
    """config.json, model.safetensors with normal weights of spread 0.02, and a tokenizer of the sentences' words."""
    kind, architecture, vocab, positions, types, pad = SHAPES[name]
    folder.mkdir(parents=True)
    config = {"model_type": kind, "architectures": [architecture], "hidden_size": HIDDEN, "num_attention_heads": HEADS}
    config |= {"num_hidden_layers": LAYERS, "intermediate_size": WIDTH, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "vocab_size": vocab}
    config |= {"max_position_embeddings": positions, "type_vocab_size": types, "pad_token_id": pad}
    (folder / "config.json").write_text(json.dumps(config))
    shapes: dict[str, tuple[int, ...]] = {"embeddings.word_embeddings.weight": (vocab, HIDDEN)}
    shapes["embeddings.position_embeddings.weight"] = (positions, HIDDEN)
    shapes["embeddings.token_type_embeddings.weight"] = (types, HIDDEN)
    layer = {f"attention.self.{part}": (HIDDEN, HIDDEN) for part in ("query", "key", "value")}
    layer |= {"attention.output.dense": (HIDDEN, HIDDEN), "intermediate.dense": (WIDTH, HIDDEN), "output.dense": (HIDDEN, WIDTH)}
    norms = ["embeddings.LayerNorm"]
    for index in range(LAYERS):
        at = f"encoder.layer.{index}."
        shapes |= {f"{at}{part}.weight": shape for part, shape in layer.items()}
        shapes |= {f"{at}{part}.bias": shape[:1] for part, shape in layer.items()}
        norms += [f"{at}attention.output.LayerNorm", f"{at}output.LayerNorm"]
    rng = np.random.default_rng(0)
    tensors = {key: np.float32(0.02) * rng.standard_normal(shape, np.float32) for key, shape in shapes.items()}
    for norm in norms:
        tensors |= {f"{norm}.weight": np.ones(HIDDEN, np.float32), f"{norm}.bias": np.zeros(HIDDEN, np.float32)}
    write_tensors(folder / "model.safetensors", tensors)
    words = dict.fromkeys(word for sentence in sentences for word in sentence.words)
    tokens = [*(["<s>", "<pad>", "</s>", "<unk>"] if pad else ["<pad>", "<unk>", "<s>", "</s>"]), *words][:vocab]
    tokens += [f"<unused{index}>" for index in range(vocab - len(tokens))]
    backend = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    around = [(token, tokens.index(token)) for token in ("<s>", "</s>")]
    backend.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=around)
    (folder / "tokenizer.json").write_text(backend.to_str())


def main(folder: Path, files: list[str]) -> None:
    sentences = read_sentences(files, limit=SENTENCES)
    labels = labels_of(sentences)
    for name in SHAPES:
        here = folder / name
        shutil.rmtree(here, ignore_errors=True)
        write_model(here / "hf", name, sentences)
        steps: list[str] = []
        last = time.monotonic()

        def step(what: str, steps: list[str] = steps) -> None:
            nonlocal last
            steps.append(f"{what} {time.monotonic() - last:.1f} s")
            last = time.monotonic()

        engine.convert(here / "hf", here / "dense")
        step("convert")
        tagger = with_labels(checkpoints.read(here / "dense"), labels.names, 0)
        result = rank(tagger, here / "ranking", files, DataOptions(limit=SENTENCES), RankOptions(batch=8))
        step(f"rank on {result['sentences']} sentences")
        pruned = apply_ranking(tagger, np.load(here / "ranking" / SCORES), Budget(heads=KEPT), {})
        checkpoints.save(pruned, here / "pruned")
        step("apply")
        checkpoints.save(mask(tagger, [layer.attention.kept for layer in pruned.spec.layers]), here / "masked")
        ids = [[0, *range(5, 5 + length), 2] for length in (3, 17, 40)]
        logits = []
        last = time.monotonic()
        for kind in ("pruned", "masked"):
            with engine.load(here / kind, dtype="float32") as model:
                logits.append(model.logits(ids))
            step(f"run {kind}")
        difference = float(np.abs(logits[0] - logits[1]).max())
        heads = [len(layer.attention.kept) for layer in pruned.spec.layers]
        print(f"{name}: {'; '.join(steps)}; heads kept {heads}; pruned against masked {difference:.1e}", flush=True)
        shutil.rmtree(here)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
