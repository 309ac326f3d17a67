"""What a load or a conversion opens, parses and hashes: `python -m tests.support.opened PATH [OUT]` prints it as JSON.

With OUT the source is converted, without it loaded. Files are those below the folder of PATH, by their names.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import Counter, defaultdict
from pathlib import Path
from types import FrameType
from typing import Any

import engine

OPENERS = ("engine", "torch")


def opener(frame: FrameType | None) -> str:
    """The top package of the innermost frame of ours or PyTorch's."""
    while frame is not None:
        top = str(frame.f_globals.get("__name__")).split(".")[0]
        if top in OPENERS:
            return top
        frame = frame.f_back
    return "?"


def main(path: Path, output: Path | None) -> dict[str, Any]:
    folder = path if path.is_dir() else path.parent
    texts = {file.name: file.read_text(encoding="utf-8") for file in folder.glob("*.json")}
    opened: dict[str, list[str]] = defaultdict(list)
    parsed: Counter[str] = Counter()
    hashed: Counter[str] = Counter()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], (str, os.PathLike)) and Path(arguments[0]).parent == folder:
            opened[Path(arguments[0]).name].append(opener(sys._getframe(1)))

    def counted(name: str, function: Any) -> Any:
        def call(*arguments: Any, **settings: Any) -> Any:
            if opener(sys._getframe(1)) == "engine":
                hashed[name] += 1
            return function(*arguments, **settings)

        return call

    loads = json.loads

    def counted_loads(text: Any, *arguments: Any, **settings: Any) -> Any:
        parsed.update(name for name, held in texts.items() if held == text)
        return loads(text, *arguments, **settings)

    json.loads = counted_loads
    for name in ("sha256", "blake2b"):
        setattr(hashlib, name, counted(name, getattr(hashlib, name)))
    sys.addaudithook(hook)
    if output is None:
        engine.load(path, backend="cpu").close()
    else:
        engine.convert(path, output)
    return {"opened": {name: sorted(openers) for name, openers in opened.items()}, "parsed": parsed, "hashed": hashed}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)))
