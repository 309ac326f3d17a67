"""A transformers 4 model in a process of its own environment: requests and answers as lines of JSON. Imports nothing of this project.

python transformers_worker.py DIRECTORY THREADS; then {"ids": [[...]], "mask": [[...]], "file": FILE} sets the texts, runs them and, where
FILE is given, writes their hidden states [texts, longest, hidden] to it; {} runs them again. Answers: {"seconds": ...} or {"error": ...}.
"""

import json
import sys
import time
from typing import Any

import numpy as np
import torch
import transformers  # type: ignore[import-not-found]


def main(directory: str, threads: int) -> None:
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    model = transformers.AutoModel.from_pretrained(directory, attn_implementation="sdpa", add_pooling_layer=False).eval()
    answer({"transformers": transformers.__version__, "torch": torch.__version__})
    inputs: dict[str, Any] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if request:
            inputs = {"input_ids": torch.tensor(request["ids"]), "attention_mask": torch.tensor(request["mask"])}
        try:
            with torch.inference_mode():
                start = time.perf_counter()
                hidden = model(**inputs).last_hidden_state
                seconds = time.perf_counter() - start
        except Exception as error:
            answer({"error": f"{type(error).__name__}: {error}"})
            continue
        if request.get("file"):
            np.save(request["file"], hidden.numpy())
        answer({"seconds": seconds})


def answer(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
