"""Text as it arrives: whole characters only, spaces kept, nothing of a stop text."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from engine.checkpoint.tokenizer import Tokenizer, words
from engine.runtime.text import TextStream


class Bytes:
    """One id is one byte, decoded as a byte-level tokenizer does: replacement characters for what is no character."""

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode("utf-8", "replace")


class Letters:
    """One id is one piece of text."""

    def __init__(self, pieces: Sequence[str]) -> None:
        self.pieces = pieces

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.pieces[i] for i in ids)


def stream_all(stream: TextStream, ids: Sequence[int]) -> list[str]:
    pieces = []
    for token in ids:
        pieces.append(stream.add(token))
        if stream.stopped:
            break
    pieces.append(stream.finish())
    return pieces


@pytest.mark.parametrize("text", ["plain", "naïve – 漢字 🙂!", "🙂🙂", "\ufffd odd", "e\u0308"])
def test_no_piece_holds_half_a_character(text: str) -> None:
    pieces = stream_all(TextStream(Bytes(), [], ()), list(text.encode()))
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert all("\ufffd" not in piece for piece in pieces)


def test_bytes_that_never_become_a_character_are_shown_once_that_is_certain() -> None:
    pieces = stream_all(TextStream(Bytes(), [], ()), [0x61, 0xFF, 0x62, 0xF0, 0x9F])
    assert pieces[0] == "a" and pieces[2] == "\ufffdb" and "".join(pieces) == "a\ufffdb\ufffd"


def test_a_character_begun_in_the_prompt_is_completed() -> None:
    prompt, rest = "ab🙂".encode()[:4], "ab🙂c".encode()[4:]
    assert "".join(stream_all(TextStream(Bytes(), list(prompt), ()), list(rest))) == "🙂c"
    assert "".join(stream_all(TextStream(Bytes(), list(prompt), ()), list(b"cd"))) == "cd"  # what the prompt broke is not the text's
    assert "".join(stream_all(TextStream(Bytes(), list("\ufffd".encode()), ()), list(b"cd"))) == "cd"


def test_words_keep_the_space_between_prompt_and_text() -> None:
    tokenizer = Tokenizer.from_json(words(["<eos>", "to", "be", "or", "not"]))
    for length in (1, 2, 30):
        prompt = [1, 2] * length
        following = [3, 4, 1, 0, 2] * 7
        pieces = stream_all(TextStream(tokenizer, prompt, ()), following)
        assert tokenizer.decode(prompt) + "".join(pieces) == tokenizer.decode(prompt + following)
        assert pieces[0] == " or"


def test_decoding_does_not_grow_with_the_text() -> None:
    longest = []

    class Counting(Bytes):
        def decode(self, ids: Sequence[int]) -> str:
            longest.append(len(ids))
            return super().decode(ids)

    stream_all(TextStream(Counting(), list(b"x" * 500), ()), list("añ🙂".encode() * 100))
    assert max(longest) < 20


@pytest.mark.parametrize("stops", [("ab",), ("abab",), ("b", "abc"), ("aab",), ("bb", "ba"), ("c",), ("aaaa", "aab")])
def test_stop_texts_never_leak_and_end_at_the_first_that_is_complete(stops: tuple[str, ...]) -> None:
    for ids in itertools.product(range(3), repeat=6):
        text = "".join("abc"[i] for i in ids)
        ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
        expected = text[: min(ends)[1]] if ends else text
        stream = TextStream(Letters("abc"), [], stops)
        pieces = stream_all(stream, ids)
        assert "".join(pieces) == expected and stream.stopped == bool(ends)
        joined = list(itertools.accumulate(pieces))
        assert all(expected.startswith(part) for part in joined)


def test_the_same_text_stops_at_the_same_place_whatever_its_tokens() -> None:
    single = TextStream(Letters("abc"), [], ("b", "abc"))
    merged = TextStream(Letters(["abc"]), [], ("b", "abc"))
    assert stream_all(single, [0, 1, 2]) == ["", "a", ""]
    assert stream_all(merged, [0]) == ["a", ""]


def test_text_is_held_back_no_longer_than_it_may_begin_a_stop() -> None:
    stream = TextStream(Letters("abc\n"), [], ("\n\nab",))
    assert [stream.add(i) for i in (0, 3, 3, 3, 0, 2)] == ["a", "", "", "\n", "", "\n\nac"]
