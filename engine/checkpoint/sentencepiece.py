"""A SentencePiece model file (sentencepiece_model.proto), without its library."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from engine.errors import ConversionError, Problem

UNIGRAM = 1  # trainer_spec.model_type
CONTROL, USER_DEFINED = 3, 4  # kinds of pieces: never made of a text, always whole in one
Field = tuple[int, Any]  # number, value: an integer, four bytes or a piece of the message


@dataclass(frozen=True)
class Piece:
    """score: its log-probability.  kind: normal 1, unknown 2, control 3, user-defined 4, unused 5, byte 6."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class SentencePiece:
    """table: the compiled character map, empty without one.  prefix: a space is put before a text.  single_spaces: of several one stays."""

    pieces: list[Piece]
    table: bytes
    prefix: bool
    single_spaces: bool


def read_sentencepiece(model: bytes, source: str) -> SentencePiece:
    """A unigram model; raises ConversionError for other bytes, other models and pieces of bytes for unknown characters."""
    pieces: list[Piece] = []
    trainer: dict[int, Any] = {}
    normaliser: dict[int, Any] = {}
    try:
        for number, value in _fields(model):
            if number == 1:
                held = dict(_fields(value))
                pieces.append(Piece(held[1].decode(), struct.unpack("<f", held.get(2, bytes(4)))[0], held.get(3, 1)))
            elif number == 2:
                trainer = dict(_fields(value))
            elif number == 3:
                normaliser = dict(_fields(value))
    except (ValueError, KeyError, IndexError, AttributeError, TypeError, struct.error) as error:
        raise ConversionError(Problem("file", "a SentencePiece model", f"bytes that are none ({error})"[:120]), source=source) from None
    if len(pieces) < 4:
        raise ConversionError(Problem("file", "a SentencePiece model with at least 4 pieces", str(len(pieces))), source=source)
    problems = []
    if (kind := trainer.get(3, UNIGRAM)) != UNIGRAM:
        problems.append(Problem("model_type", f"{UNIGRAM} (unigram), what XLM-R and CamemBERT use", str(kind)))
    if trainer.get(35):
        problems.append(Problem("byte_fallback", "false: XLM-R and CamemBERT have <unk> for an unknown character", "true"))
    if trainer.get(24):
        problems.append(Problem("treat_whitespace_as_suffix", "false: a space belongs to the word behind it", "true"))
    if problems:
        raise ConversionError(problems, source=source)
    table = normaliser.get(2, b"")
    if not isinstance(table, bytes):
        raise ConversionError(Problem("file", "a SentencePiece model", "a character map that is a number"), source=source)
    return SentencePiece(pieces, table, bool(normaliser.get(3, 1)), bool(normaliser.get(4, 1)))


def _fields(message: bytes) -> Iterator[Field]:
    """The fields of a protocol-buffers message, in order (protobuf.dev, Encoding)."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(message, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if at + size > len(message):
            raise ValueError(f"{size} bytes at byte {at} of {len(message)}")
        yield number, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 64:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise ValueError(f"a number without end at byte {at}")
