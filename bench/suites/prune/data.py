"""What labelled files hold, as a Markdown table: `python -m bench.suites.prune.data FOLDER…`; status 1 if one cannot be read."""

from __future__ import annotations

import sys
from pathlib import Path

from engine.errors import EngineError
from engine.prune.data.labels import labels_of
from engine.prune.data.lines import WORDS
from engine.prune.data.read import read_sentences

NO_DATA = (".md", "LICENSE.txt", "Attribution.txt", "label.txt", "seq.in", "seq.out", "label")  # ends of file names beside the data


def labelled(folder: Path) -> list[Path]:
    """Files and slot folders below `folder`."""
    slots = [path.parent for path in folder.rglob(WORDS)]
    return sorted(slots + [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(NO_DATA)])


def main(folders: list[str]) -> int:
    failed = 0
    print("| file | sentences | words | labels |\n|---|--:|--:|--:|")
    for folder in map(Path, folders):
        for path in labelled(folder):
            try:
                sentences = read_sentences(path)
            except EngineError as error:
                failed += 1
                print(f"{path}: {error}", file=sys.stderr)
                continue
            words = sum(len(sentence.words) for sentence in sentences)
            print(f"| {path.relative_to(folder.parent)} | {len(sentences):,} | {words:,} | {len(labels_of(sentences).names)} |")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
