"""Token ids → text as it arrives: no half characters, nothing of a stop text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

HALF = "\ufffd"  # what a decoder writes for bytes that are no character (yet)
CONTEXT = 8  # ids of the prompt that the first text is decoded after, so that a space between words is not lost


class Decoder(Protocol):
    """What text needs of a tokenizer."""

    def decode(self, ids: Sequence[int]) -> str: ...


class TextStream:
    """The text of one sequence, piece by piece; pieces joined are the text, whatever the tokens' borders.

    Ids are decoded together with the few before them, since a decoder may join neighbours, and never the whole sequence again.
    """

    def __init__(self, decoder: Decoder, prompt: Sequence[int], stops: Sequence[str]) -> None:
        self._decoder = decoder
        self._ids = list(prompt[-CONTEXT:])
        self._read = len(self._ids)  # ids before it are in `_before`
        self._from = 0  # decoding starts here
        self._before = decoder.decode(self._ids) if self._ids else ""
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that token `token` brings to light: empty while a character or a stop text may still be completed."""
        self._ids.append(token)
        text = self._decoder.decode(self._ids[self._from :])
        if text.endswith(HALF):
            return ""
        piece = self._advance(text)
        return self._release(piece)

    def finish(self) -> str:
        """What was held back, once no token follows."""
        if self.stopped:
            return ""
        piece = self._advance(self._decoder.decode(self._ids[self._from :])) if self._read < len(self._ids) else ""
        piece = self._release(piece)
        held, self._held = self._held, ""
        return piece + held

    def _advance(self, text: str) -> str:
        half_done = not text.startswith(self._before)  # the prompt ended inside a character, which is now whole
        piece = text[len(self._before.rstrip(HALF) if half_done else self._before) :]
        if piece:
            self._from, self._read = self._read, len(self._ids)
            self._before = self._decoder.decode(self._ids[self._from :])
        return piece

    def _release(self, piece: str) -> str:
        """Add `piece` to what is held; give out all but what may begin a stop text, or all before a stop text that is complete."""
        self._held += piece
        found = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            kept = self._held[: min(found)[1]]  # the stop text that is complete first, however many tokens it came in
            self._held = ""
            return kept
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        split = len(self._held) - keep
        piece, self._held = self._held[:split], self._held[split:]
        return piece


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
