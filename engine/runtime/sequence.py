"""One prompt on its way: what is still to be fed, what was drawn, why it ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from engine.runtime.options import GenerationOptions
from engine.runtime.sampler import Draw, Request, fresh_seed
from engine.runtime.text import Decoder, TextStream


@dataclass(frozen=True)
class TokenLogprob:
    """log p(id) before any temperature, and the `logprobs` most probable tokens in its place as (id, log-probability), best first."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Token:
    """One generated token. text: what it adds to the text, empty while a character or a stop text may still be completed, None without a
    tokenizer."""

    id: int
    text: str | None
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Completion:
    """What followed one prompt.

    ids: every token drawn, those of a stop included; text ends before the stop and is None without a tokenizer. seed: the one used, None
    when greedy.
    """

    ids: list[int]
    text: str | None
    logprobs: list[TokenLogprob]
    finish_reason: Literal["stop", "length"]
    seed: int | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(eq=False)
class Generation:
    """The state of one generation; `pending` ids are the next rows, from `position` on, of its slot."""

    pending: np.ndarray
    options: GenerationOptions
    seed: int
    stream: TextStream | None
    slot: int = -1
    position: int = 0
    finish_reason: Literal["stop", "length"] | None = None
    tokens: list[Token] = field(default_factory=list)

    @staticmethod
    def start(prompt: np.ndarray, options: GenerationOptions, decoder: Decoder | None) -> Generation:
        stream = TextStream(decoder, prompt.tolist(), options.stop_texts) if decoder is not None else None
        seed = options.seed if options.seed is not None else fresh_seed()
        return Generation(prompt, options, seed, stream)

    @property
    def request(self) -> Request:
        return Request(self.options, self.seed, len(self.tokens))

    def accept(self, draw: Draw) -> Token:
        """Take the token drawn for this sequence; the next rows are that token, unless it ends the sequence."""
        stop_id = draw.id in self.options.stop_ids
        text = self._text(draw.id, stop_id, last=len(self.tokens) + 1 == self.options.max_new_tokens)
        token = Token(draw.id, text, draw.logprob, draw.top)
        self.tokens.append(token)
        if stop_id or (self.stream is not None and self.stream.stopped):
            self.finish_reason = "stop"
        elif len(self.tokens) == self.options.max_new_tokens:
            self.finish_reason = "length"
        self.pending = np.array([draw.id])
        return token

    def completion(self) -> Completion:
        assert self.finish_reason is not None
        return Completion(
            ids=[token.id for token in self.tokens],
            text=_joined([token.text for token in self.tokens]),
            logprobs=[TokenLogprob(token.id, token.logprob, token.top) for token in self.tokens],
            finish_reason=self.finish_reason,
            seed=self.seed if self.options.temperature > 0 else None,
        )

    def _text(self, token: int, stop_id: bool, *, last: bool) -> str | None:
        if self.stream is None:
            return None
        text = "" if stop_id else self.stream.add(token)
        return text + self.stream.finish() if stop_id or last else text


def _joined(pieces: Sequence[str | None]) -> str | None:
    return None if None in pieces else "".join(piece for piece in pieces if piece is not None)
