"""Text ⇄ token ids through a Hugging Face tokenizer.json; character and word vocabularies are turned into one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from engine.errors import CheckpointError, ConversionError, InputError, Problem

UNKNOWN = "<unk>"


class Tokenizer:
    """A tokenizer that adds nothing of its own unless asked: ids are those of the text alone."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    @staticmethod
    def from_json(text: str, *, source: str | None = None) -> Tokenizer:
        """Read the text of a tokenizer.json; raises CheckpointError when the tokenizers library cannot.

        Padding and truncation some files ask for are left out: a text is encoded whole, and batches are made without padding.
        """
        try:
            backend = Backend.from_str(text)
            backend.no_padding()
            backend.no_truncation()
            return Tokenizer(backend)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library raises bare Exception, and its panics are no Exception
            raise CheckpointError(
                Problem("tokenizer.json", "a tokenizer the tokenizers library reads", str(error)), source=source
            ) from None

    @property
    def vocab_size(self) -> int:
        return int(self._backend.get_vocab_size())

    def encode(self, text: str, *, special_tokens: bool = False) -> list[int]:
        """Token ids of `text`; raises InputError naming the first character or word that the vocabulary lacks.

        special_tokens: with what an encoder has around a text, such as [CLS] and [SEP].
        """
        if not isinstance(text, str):
            raise InputError(Problem("text", "text", type(text).__name__))
        try:
            text.encode()
            return list(self._backend.encode(text, add_special_tokens=special_tokens).ids)
        except UnicodeEncodeError as error:
            found = f"half a surrogate pair at position {error.start}"
            raise InputError(Problem("text", "characters that UTF-8 can write", found)) from None
        except Exception as error:
            raise InputError(self._first_unknown(text) or Problem("text", "text this tokenizer encodes", str(error))) from None

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; ids the vocabulary lacks have none."""
        try:
            return str(self._backend.decode(list(ids)))
        except (OverflowError, TypeError):
            raise InputError(Problem("ids", "token ids", repr(list(ids))[:60])) from None

    def to_json(self) -> str:
        return str(self._backend.to_str())

    def _first_unknown(self, text: str) -> Problem | None:
        normalized = self._backend.normalizer.normalize_str(text) if self._backend.normalizer else text
        pieces: list[tuple[str, Any]] = [(normalized, (0, len(normalized)))]
        if self._backend.pre_tokenizer:
            pieces = self._backend.pre_tokenizer.pre_tokenize_str(normalized)
        for piece, (start, _) in pieces:
            if self._backend.token_to_id(piece) is None:
                return Problem("text", "characters and words of the vocabulary", f"{piece!r} at position {start}")
        return None


def characters(vocabulary: Sequence[str]) -> str:
    """The tokenizer.json of a character vocabulary: entry i is id i; `<unk>`, if there, stands for every other character."""
    backend = Backend(_word_level(vocabulary))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return str(backend.to_str())


def words(vocabulary: Sequence[str], *, end_of_line: str | None = "<eos>", lower: bool = False) -> str:
    """The tokenizer.json of a vocabulary of words between white space: entry i is id i; a line break is the word `end_of_line`, if there.

    `<unk>`, if there, stands for every other word; lower: text is put in lower case first, as the vocabulary was.
    """
    backend = Backend(_word_level(vocabulary))
    steps: list[Any] = [normalizers.Lowercase()] if lower else []
    spaced: list[Any] = [decoders.WordPiece(prefix="\x00", cleanup=False)]  # a space before each word but the first
    if end_of_line is not None and end_of_line in set(vocabulary):
        steps.append(normalizers.Replace("\n", f" {end_of_line} "))
        escaped = "".join(c if c.isalnum() else "\\" + c for c in end_of_line)
        spaced.append(decoders.Replace(Regex(f"^ ?{escaped}$"), "\n"))
    if steps:
        backend.normalizer = normalizers.Sequence(steps)
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.Sequence(spaced)
    return str(backend.to_str())


def _word_level(vocabulary: Sequence[str]) -> models.WordLevel:
    numbers = {entry: index for index, entry in enumerate(vocabulary)}
    if len(numbers) != len(vocabulary):
        twice = next(entry for index, entry in enumerate(vocabulary) if numbers[entry] != index)
        raise ConversionError(Problem("vocabulary", "each entry once", f"{twice!r} twice"))
    return models.WordLevel(numbers, unk_token=UNKNOWN) if UNKNOWN in numbers else models.WordLevel(numbers)
