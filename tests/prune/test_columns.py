"""Columns of tagged words as people have them: comments, numbers, blanks inside words, line ends, encodings, BIOES and BILOU."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import InputError
from engine.prune.data.labels import LabelSet, read_labels
from engine.prune.data.metrics import measure
from engine.prune.data.read import read_sentences
from engine.prune.data.tags import iob2

Tagged = list[tuple[str, str]]  # words and tags between blanks


def read(folder: Path, text: str | bytes, format: str = "auto", encoding: str = "utf-8") -> Tagged:
    path = folder / "words"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [("|".join(s.words), " ".join(s.labels)) for s in read_sentences(path, format, encoding=encoding)]


@pytest.mark.parametrize("between", ["\t", " ", "\tdomain="])
@pytest.mark.parametrize("columns", [" ", "\t"])
def test_comments_before_a_sentence(columns: str, between: str, tmp_path: Path) -> None:
    """MultiCoNER: the separator is that of the words, not of the comments."""
    lines = [f"# id 7{between}train", "anna _ _ B-PER".replace(" ", columns), "ran _ _ O".replace(" ", columns), "", "", f"# id{between}O"]
    text = "\n".join([*lines, "it _ _ O".replace(" ", columns)]) + "\n"
    assert read(tmp_path, text) == [("anna|ran", "B-PER O"), ("it", "O")]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("# O\n1 O\nhit O\n", [("#|1|hit", "O O O")]),
        ("#\tO\n#\tB-x\n", [("#|#", "O B-x")]),
        ("#rome B-LOC\nis O\n\n#\ta comment O\n#1 O\n", [("#rome|is", "B-LOC O"), ("#1", "O")]),
        ("# id 7\tdomain=x\nEU\tB-ORG\n\n# id 8\nIt\tO\n", [("EU", "B-ORG"), ("It", "O")]),
        ("EU B-ORG\nrejects O\n \t \nIt O\n", [("EU|rejects", "B-ORG O"), ("It", "O")]),
        ("EU B-ORG\t\nrejects\u00a0it   O\n", [("EU|rejects\u00a0it", "B-ORG O")]),
        ("-DOCSTART- -X- O\n\nEU\tNNP\tB-ORG\n", [("EU", "B-ORG")]),
    ],
)
def test_what_is_a_word(text: str, sentences: Tagged, tmp_path: Path) -> None:
    assert read(tmp_path, text) == sentences


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a O\n# b\n", "words:2: expected O, B-"),  # inside a sentence no line is a comment
        ("a O\n\n#tag\n", "words:3: expected a word and its tag"),
        ("a O\n\n#tag X-y\n", "words:3: expected O, B-"),
        ("a b\tB-x\nc O\n", "words:2: expected a word and its tag"),
        ("a M-x\n", "found 'M-x'"),
        ("a O\n\u00a0\nb O\n", "words:2: expected a word and its tag"),
    ],
)
def test_malformed_lines_stay_problems(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("1 EU NNP I-NP I-ORG\n2 is VBZ I-VP O\n\n1 Bonn NNP I-NP I-LOC\n", [("EU|is", "I-ORG O"), ("Bonn", "I-LOC")]),
        ("0\tEU\tB-ORG\n1\t-\tO\n\n0\tx\tO\n", [("EU|-", "B-ORG O"), ("x", "O")]),
        ("1 EU O\n2 7 O\n\n3 x O\n4 y O\n", [("EU|7", "O O"), ("x|y", "O O")]),  # counted on
        ("1 a I-NP O\n2 b I-VP B-x\n", [("a|b", "O B-x")]),  # chunk, then tag
        ("1994 O\n7 O\nRome B-LOC\n", [("1994|7|Rome", "O O B-LOC")]),
        ("1 O\n2 O\n3 B-x\n", [("1|2|3", "O O B-x")]),
        ("1 CD O\nhit NN O\nof IN O\n", [("1|hit|of", "O O O")]),
        ("1994 CD O\n7 CD O\n9 CD O\n", [("1994|7|9", "O O O")]),
    ],
)
def test_a_running_number_is_no_word(text: str, sentences: Tagged, tmp_path: Path) -> None:
    assert read(tmp_path, text) == read(tmp_path, text, "columns") == sentences


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1 a X O\n2 b X O\n4 d X O\n5 e X O\n", "words:3: expected 3 in the first column, which counts the words, found '4'"),
        ("1 a X O\n2 b X O\n3-4 cd X O\n3 c X O\n4 d X O\n", "words:3: expected 3 in the first column"),
        ("1 a O\n2 b O\n3 O\n", "words:3: expected a number, a word and its tag"),
        ("1 a O\n\n1 b O\n", "words:1: expected words, or numbers that count them"),
    ],
)
def test_numbers_that_do_not_run_on_are_problems(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says) as error:
        read(tmp_path, text)
    assert len(error.value.problems) == 1


def test_nested_tags_are_no_slots(tmp_path: Path) -> None:
    """GermEval 2014 is numbered in four fields below a comment, as xSID is; its third column is the outer tag."""
    nested = "#\thttp://x.example [2009-10-17]\n1\tFC\tB-ORG\tO\n2\tBonn\tI-ORG\tB-LOC\n3\tda\tO\tO\n\n# x\n1\tTor\tO\tO\n"
    assert read(tmp_path, nested) == [("FC|Bonn|da", "B-ORG I-ORG O"), ("Tor", "O")]
    slots = "# text\n1\ta\tfind\tB-x\n2\tb\tfind\tO\n\n# text\n1\tc\tstop\tO\n2\t\u3000\tstop\tO\n"
    assert read(tmp_path, slots) == read(tmp_path, slots, "xsid") == [("a|b", "B-x O"), ("c", "O")]
    parts = "# text\n1\ta\tNN\tB-x\n2\tb\tVB\tO\n3\t\u3000\tVB\tO\n"  # no intent: parts of speech
    assert read(tmp_path, parts) == [("a|b|\u3000", "B-x O O")]


@pytest.mark.parametrize("letter", ["\u00a0", "\u2009", "\u3000", "\u2028", "\u0085", "\u202f", "\u1680", "\x1c", "\x0b", "\x0c"])
def test_white_space_of_unicode_is_a_letter(letter: str, tmp_path: Path) -> None:
    word = f"10{letter}000"
    for blank in (" ", "\t", "  "):
        assert read(tmp_path, f"{word}{blank}B-n\n{letter}{blank}O\n".replace("\t\t", "\t")) == [(f"{word}|{letter}", "B-n O")]
    (tmp_path / "seq.in").write_text(f"{word} a\n", encoding="utf-8")
    (tmp_path / "seq.out").write_text("B-n O\n", encoding="utf-8")
    assert read_sentences(tmp_path)[0].words == (word, "a")
    rest = "\t_" * 6
    (tmp_path / "a.conllu").write_text(f"1\t{letter}\t_\tX{rest}\n\n", encoding="utf-8")
    assert read_sentences(tmp_path / "a.conllu")[0].words == (letter,)


def test_line_ends(tmp_path: Path) -> None:
    sentences = [("EU|rejects", "B-ORG O"), ("It", "O")]
    text = "EU B-ORG\nrejects O\n\nIt O\n"
    for end in ("\n", "\r\n", "\r"):
        assert read(tmp_path, text.replace("\n", end)) == sentences
    with pytest.raises(InputError, match="words:2: expected a carriage return only at the end of a line"):
        read(tmp_path, "EU B-ORG\nrejects O\rIt O\n")


def test_encodings(tmp_path: Path) -> None:
    text = "Köln B-LOC\n"
    for name in ("latin-1", "cp1252", "utf-16", "UTF-8", "utf8"):
        assert read(tmp_path, text.encode(name), encoding=name) == [("Köln", "B-LOC")]
    assert read(tmp_path, b"\xef\xbb\xbf" + text.encode(), encoding="UTF8") == [("Köln", "B-LOC")]
    with pytest.raises(InputError, match=r"(?s)words:1: expected text in UTF-8, found byte 0xf6.*--encoding"):
        read(tmp_path, text.encode("latin-1"))
    for name in ("latin-x", "base64", "a\0b", ""):
        with pytest.raises(InputError, match="encoding: expected a text encoding"):
            read(tmp_path, text, encoding=name)
    (tmp_path / "labels").write_bytes("O\nB-Flüsse\n".encode("latin-1"))
    assert read_labels(str(tmp_path / "labels"), "latin-1") == LabelSet(("O", "B-Flüsse"))


@pytest.mark.parametrize(("alone", "end"), ["SE", "UL"])
def test_bioes_and_bilou(alone: str, end: str, tmp_path: Path) -> None:
    tags = f"{alone}-ORG O B-LOC {end}-LOC"
    words = "EU|rejects|New|York"
    assert read(tmp_path, "".join(f"{w} {t}\n" for w, t in zip(words.split("|"), tags.split(), strict=True))) == [(words, tags)]
    (tmp_path / "seq.in").write_text(words.replace("|", " "), encoding="utf-8")
    (tmp_path / "seq.out").write_text(tags, encoding="utf-8")
    assert read_sentences(tmp_path)[0].labels == tuple(tags.split())


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("S-x S-x O", "B-x B-x O"),
        ("B-x I-x E-x E-x", "B-x I-x I-x B-x"),
        ("U-x I-x L-x B-y", "B-x B-x I-x B-y"),
        ("E-x O E-x", "I-x O I-x"),
        ("I-x I-y B-y", "I-x I-y B-y"),
    ],
)
def test_spans_as_iob2(tags: str, spans: str) -> None:
    assert iob2(tags.split()) == spans.split()


@pytest.mark.parametrize(("alone", "end"), ["SE", "UL"])
def test_spans_of_bioes_and_bilou_are_counted(alone: str, end: str) -> None:
    pytest.importorskip("seqeval")
    labels = LabelSet(("O", "B-x", "I-x", f"{alone}-x", f"{end}-x"))
    truth = [[3, 3, 1, 2, 4, 0]]  # three spans
    assert labels.spans and measure(labels, truth, truth)["score"] == 1
    scores = measure(labels, truth, [[3, 0, 1, 2, 4, 0]])
    assert scores["precision"] == 1 and scores["recall"] == pytest.approx(2 / 3)
    assert measure(labels, truth, [[1, 4, 1, 2, 4, 0]])["recall"] == pytest.approx(1 / 3)  # two words as one span
