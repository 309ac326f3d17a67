"""Words → pieces of a sub-word tokenizer, a word's label on its first piece, as arXiv 1810.04805 §5.3 and arXiv 2108.08375 do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer as Backend

from engine.errors import CheckpointError, InputError, Problem
from engine.prune.data.sentences import SHOWN, Sentence


@dataclass(frozen=True)
class Example:
    """One sequence: token ids; `first` columns of each word's first piece, `labels` of the words; `sentence` it comes from."""

    ids: tuple[int, ...]
    first: tuple[int, ...]
    labels: tuple[int, ...]
    sentence: int


class Pieces:
    """A tokenizer.json used word by word; special tokens stand around a sequence as its own post-processor puts them."""

    def __init__(self, text: str | None) -> None:
        if text is None:
            hint = "convert it from a directory that has its tokenizer.json"
            raise InputError(Problem("model", "one with a tokenizer", "one without"), hint=hint)
        try:
            self._backend = Backend.from_str(text)
            self._backend.no_padding()  # a file may ask for a fixed length
            self._backend.no_truncation()
            around = list(self._backend.encode("", add_special_tokens=True).ids)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library raises bare Exception, and its panics are no Exception
            raise CheckpointError(Problem("tokenizer.json", "a tokenizer the tokenizers library reads", str(error))) from None
        half = (len(around) + 1) // 2
        self.start, self.end = around[:half], around[half:]
        self._lead = " " if _needs_blank(self._backend) else ""
        self._unknown: Any = self._backend.token_to_id(getattr(self._backend.model, "unk_token", None) or "<unk>")
        self._cache: dict[str, list[int]] = {}

    def of_word(self, word: str) -> list[int]:
        """Token ids of a word, of the unknown token where the tokenizer leaves nothing of it; raises InputError if there is none."""
        if word not in self._cache:
            try:
                ids = list(self._backend.encode(self._lead + word, add_special_tokens=False).ids)
            except Exception as error:  # the library names no closed list of what it may raise
                raise InputError(Problem(f"word {word!r}", "a word this tokenizer encodes", str(error)[:80])) from None
            if not ids:
                if self._unknown is None:
                    raise InputError(Problem(f"word {word!r}", "at least one piece", "none, and the tokenizer has no unknown token"))
                ids = [self._unknown]
            self._cache[word] = ids
        return self._cache[word]

    def examples(self, sentences: Sequence[Sentence], labels: Sequence[Sequence[int]], most: int | None, *, cut: bool) -> list[Example]:
        """Sequences of at most `most` tokens (None = any); a longer sentence is an error, or with `cut` goes on in the next sequence.

        labels: of each sentence's words. Raises InputError naming file and line of the sentences that are too long.
        """
        found, problems = [], []
        room = None if most is None else most - len(self.start) - len(self.end)
        for index, (sentence, numbers) in enumerate(zip(sentences, labels, strict=True)):
            words = [self.of_word(word) for word in sentence.words]
            size, longest = sum(map(len, words)), max(map(len, words))
            if room is not None and (longest > room or (size > room and not cut)):
                around = len(self.start) + len(self.end)
                problems.append(Problem(f"{sentence.path}:{sentence.line}", f"a sentence of at most {most} tokens", str(size + around)))
                continue
            found += [self._example(words[a:b], numbers[a:b], index) for a, b in _parts([len(word) for word in words], room)]
        if problems:
            raise InputError(problems[:SHOWN], hint="let longer sentences go on in another sequence with --cut-long")
        return found

    def _example(self, words: list[list[int]], labels: Sequence[int], sentence: int) -> Example:
        ids, first = list(self.start), []
        for word in words:
            first.append(len(ids))
            ids += word
        return Example((*ids, *self.end), tuple(first), tuple(labels), sentence)


def _parts(sizes: Sequence[int], room: int | None) -> Iterator[tuple[int, int]]:
    """Runs of words [start, stop) whose pieces together are at most `room`."""
    start, used = 0, 0
    for index, size in enumerate(sizes):
        if room is not None and used + size > room:
            yield start, index
            start, used = index, 0
        used += size
    yield start, len(sizes)


def _needs_blank(backend: Backend) -> bool:
    """Whether a word in a text has a blank before it that the tokenizer sees: byte-level vocabularies without a blank of their own."""
    pre_tokenizer = backend.pre_tokenizer
    return "ByteLevel" in type(pre_tokenizer).__name__ and not getattr(pre_tokenizer, "add_prefix_space", True)
