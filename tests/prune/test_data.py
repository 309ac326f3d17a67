"""Readers of labelled sentences: the traps of each format, every malformed line with its file and number, labels, pieces and scores."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from engine.errors import InputError
from engine.prune.data.labels import LabelSet, labels_of, labels_of_model, read_labels
from engine.prune.data.metrics import measure
from engine.prune.data.pieces import Pieces
from engine.prune.data.read import read_sentences
from engine.prune.data.sentences import Sentence

REST = "\t_" * 6
TREEBANK = f"""# sent_id = 1
# text = Im Haus
1-2\tIm{REST}\t_\t_
1\tIn\tin\tADP{REST}
2\tdem\tder\tDET{REST}
3\tHaus Bau\tHaus\tNOUN{REST}
3.1\tsteht\tstehen\tVERB{REST}

# sent_id = 2
0.1\tleer\tleer\tX{REST}
1\tJa\tja\tINTJ{REST}
"""


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")
    return str(path)


def test_conllu_words_are_syntactic_words(tmp_path: Path) -> None:
    path = write(tmp_path, "a.conllu", TREEBANK)
    first, second = read_sentences(path)
    assert first == Sentence(("In", "dem", "Haus Bau"), ("ADP", "DET", "NOUN"), path, 4)
    assert (second.words, second.labels, second.line) == (("Ja",), ("INTJ",), 11)
    assert read_sentences(write(tmp_path, "b.conllu", TREEBANK.replace("\n", "\r\n")))[0].words == first.words
    assert len(read_sentences([path, path], limit=1)) == 2


@pytest.mark.parametrize(
    ("line", "wrong", "says"),
    [
        (3, f"1-1\tIm{REST}\t_\t_", "a multi-word token from 1"),
        (4, "1\tIn\tin\tADP", "10 fields between tabs, found 4"),
        (4, f"x\tIn\tin\tADP{REST}", "word 1, found 'x'"),
        (5, f"3\tdem\tder\tDET{REST}", "word 2, found '3'"),
        (5, f"2\tdem\tder\t_{REST}", "a part of speech in the fourth field"),
        (5, f"2\t \tder\tDET{REST}", "a word in the second field"),
        (5, "# late", "comments before the first word"),
        (7, f"4.1\tsteht\tstehen\tVERB{REST}", "an empty node after word 3"),
        (6, "", "an empty node after word 0"),
    ],
)
def test_a_malformed_treebank_line_is_named(line: int, wrong: str, says: str, tmp_path: Path) -> None:
    lines = TREEBANK.split("\n")
    lines[line - 1] = wrong
    path = write(tmp_path, "bad.conllu", "\n".join(lines))
    with pytest.raises(InputError, match=says) as error:
        read_sentences(path)
    assert f"bad.conllu:{line + (not wrong)}: " in str(error.value)


@pytest.mark.parametrize("wrong", ["2\tdem\tder\tDET", f"2\t\tder\tDET{REST}", f"x\tdem\tder\tDET{REST}"])
def test_one_malformed_line_is_one_problem(wrong: str, tmp_path: Path) -> None:
    """The words after it stand where they should."""
    path = write(tmp_path, "bad.conllu", TREEBANK.replace(f"2\tdem\tder\tDET{REST}", wrong))
    with pytest.raises(InputError) as error:
        read_sentences(path)
    assert len(error.value.problems) == 1 and "bad.conllu:5: " in str(error.value)


def test_numbers_of_words_that_are_none(tmp_path: Path) -> None:
    """Words left out are one problem; so is a number of more digits than Python reads."""
    for lines, place, found in (
        ([f"{n}\ta\ta\tX{REST}" for n in (1, 5, 6, 7)], 2, "word 2, found '5'"),
        ([f"1-{'9' * 5000}\ta\ta\tX{REST}", f"1\ta\ta\tX{REST}"], 1, "word 1, found '1-999"),
        ([f"{'9' * 5000}\ta\ta\tX{REST}", f"2\ta\ta\tX{REST}"], 1, "word 1, found '999"),
    ):
        with pytest.raises(InputError) as error:
            read_sentences(write(tmp_path, "bad.conllu", "\n".join(lines) + "\n\n"))
        assert f"bad.conllu:{place}: expected {found}" in str(error.value) and "found '6'" not in str(error.value)
    for lines in (["1\ta\tq\tO", "2\tb\tO", "3\tc\tq\tO"], ["1\ta\tq\tO", "4\tb\tq\tO", "5\tc\tq\tO"]):
        with pytest.raises(InputError) as error:
            read_sentences(write(tmp_path, "bad.conll", "\n".join(lines) + "\n"), "xsid")
        assert len(error.value.problems) == 1 and "bad.conll:2: " in str(error.value)


def test_a_multi_word_token_must_have_its_words(tmp_path: Path) -> None:
    path = write(tmp_path, "cut.conllu", f"1-2\tIm{REST}\t_\t_\n1\tIn\tin\tADP{REST}\n\n")
    with pytest.raises(InputError, match=r"cut.conllu:3: expected words up to 2 of a multi-word token"):
        read_sentences(path)


def test_columns_of_every_kind(tmp_path: Path) -> None:
    wiki = read_sentences(write(tmp_path, "train", "en:St.\tB-ORG\nen:en:\tI-ORG\n\nen:x\tO\n"))
    assert [s.words for s in wiki] == [("St.", "en:"), ("x",)] and wiki[0].labels == ("B-ORG", "I-ORG")
    blanks = read_sentences(write(tmp_path, "b.txt", "-DOCSTART- -X- O\n\nEU NNP B-ORG\nsagt VB O\n"))
    assert blanks == [Sentence(("EU", "sagt"), ("B-ORG", "O"), str(tmp_path / "b.txt"), 3)]
    mecab = read_sentences(write(tmp_path, "m.txt", "年\t名詞\t*\tB-DAT\nx:y\t記号\tO\n"))
    assert mecab[0].words == ("年", "x:y")
    xsid = "# text = a b\n# intent: x\n1\ta\tfind\tB-x/y\n2\t\tfind\tO\n3\tb\tfind\tO\n\n"
    assert read_sentences(write(tmp_path, "x.conll", xsid))[0].words == ("a", "b")
    tagged = "a bc b c\tADP _ VERB NOUN\n"
    assert read_sentences(write(tmp_path, "t.txt", tagged))[0] == Sentence(
        ("a", "b", "c"), ("ADP", "VERB", "NOUN"), str(tmp_path / "t.txt"), 1
    )


@pytest.mark.parametrize(
    ("text", "format", "says"),
    [
        ("a\tO\nb\n", "columns", "f:2: expected a word and its tag"),
        ("a\tO\n\tO\n", "columns", "f:2: expected a word in the first column"),
        ("a\tO\nb\tX-y\n", "columns", "f:2: expected O, B-… or I-… .* in the last column, found 'X-y'"),
        ("1\ta\tq\tO\n3\tb\tq\tO\n", "xsid", "f:2: expected word 2, found '3'"),
        ("1\ta\tq\tO\n2\t\tq\tB-x\n", "xsid", "f:2: expected a word tagged B-x"),
        ("1\ta\tO\n", "xsid", "f:1: expected number, word, intent and slot"),
        ("a b\tX\n", "tagged-lines", "f:1: expected 2 tags"),
        ("a  b\tX  X\n", "tagged-lines", "f:1: expected one blank"),
        ("", "columns", "at least one labelled sentence"),
        ("\n\n", "conllu", "at least one labelled sentence"),
    ],
)
def test_a_malformed_line_is_named(text: str, format: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says.replace("…", ".")):
        read_sentences(write(tmp_path, "f", text), format)


def test_slot_folders(tmp_path: Path) -> None:
    write(tmp_path, "seq.in", "play jazz \nstop\n")
    write(tmp_path, "seq.out", "O B-genre \nO\n")
    assert [s.labels for s in read_sentences(tmp_path)] == [("O", "B-genre"), ("O",)]
    write(tmp_path, "seq.out", "O\nO\nO\nO\n")
    with pytest.raises(InputError, match=r"(?s)seq.out:1: expected 2 tags.*seq.out:3: expected 0 tags.*seq.out:4: expected no tags"):
        read_sentences(tmp_path)
    (tmp_path / "seq.out").unlink()
    with pytest.raises(InputError, match=r"seq.out"):
        read_sentences(tmp_path)


def test_files_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"a\tO\n\xff\tO\n")
    with pytest.raises(InputError, match="bad:2: expected text in UTF-8, found byte 0xff"):
        read_sentences(tmp_path / "bad")
    with pytest.raises(InputError, match=r"^\S+missing: expected a file, found nothing$"):
        read_sentences(tmp_path / "missing")
    with pytest.raises(InputError, match="conllu, columns"):
        read_sentences(tmp_path / "bad", "conll")


def test_labels_unknown_to_the_training_data_are_errors(tmp_path: Path) -> None:
    labels = labels_of([Sentence(("a", "b"), ("X", "A"), "t", 1)])
    assert labels.names == ("A", "X") and not labels.spans
    assert labels.encode([Sentence(("a",), ("X",), "d", 1)]) == [[1]]
    with pytest.raises(InputError, match=r"(?s)d:7: expected a label of the model, found 'Y'.*labels are A, X;"):
        labels.encode([Sentence(("a", "b"), ("X", "Y"), "d", 7)])
    assert read_labels(write(tmp_path, "l", "PAD\nO\nB-x\n")) == LabelSet(("O", "B-x"))
    with pytest.raises(InputError, match="l:2: expected each label once"):
        read_labels(write(tmp_path, "l", "O\nO\n"))
    assert labels_of_model({"config": {"id2label": {"0": "O", "1": "B-x"}}}, 2) == LabelSet(("O", "B-x"))
    assert labels_of_model({"config": {}}, 2) is None
    with pytest.raises(InputError, match="a name for each of 3 labels"):
        labels_of_model({"labels": ["a", "b"]}, 3)


def word_pieces() -> str:
    """[CLS] and [SEP] around; padding and truncation asked for, as sentence-transformers writes them."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "play", "##ing", "jazz", "##s"]
    backend = Tokenizer(models.WordPiece({token: index for index, token in enumerate(tokens)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    backend.enable_padding(length=16)
    backend.enable_truncation(4)
    return str(backend.to_str())


def test_a_word_is_labelled_on_its_first_piece() -> None:
    pieces = Pieces(word_pieces())
    sentence = Sentence(("playing", "Jazzs", "\u200b", "jazz"), ("A", "B", "A", "B"), "f", 3)
    (example,) = pieces.examples([sentence], [[0, 1, 0, 1]], None, cut=False)
    assert example.ids == (2, 4, 5, 6, 7, 1, 6, 3)  # a word of which nothing is left is the unknown token
    assert example.first == (1, 3, 5, 6) and example.labels == (0, 1, 0, 1)


def test_long_sentences_are_errors_or_go_on() -> None:
    pieces = Pieces(word_pieces())
    sentence = Sentence(("playing", "jazz", "jazzs"), ("A", "B", "A"), "f", 3)
    with pytest.raises(InputError, match="f:3: expected a sentence of at most 5 tokens, found 7"):
        pieces.examples([sentence], [[0, 1, 0]], 5, cut=False)
    parts = pieces.examples([sentence], [[0, 1, 0]], 5, cut=True)
    assert [part.ids for part in parts] == [(2, 4, 5, 6, 3), (2, 6, 7, 3)] and [part.labels for part in parts] == [(0, 1), (0,)]
    with pytest.raises(InputError, match="at most 3 tokens"):  # one word alone is too long
        pieces.examples([sentence], [[0, 1, 0]], 3, cut=True)
    with pytest.raises(InputError, match="one with a tokenizer"):
        Pieces(None)


def test_spans_are_scored_by_whole_spans() -> None:
    pytest.importorskip("seqeval")
    labels = LabelSet(("O", "B-x", "I-x"))
    scores = measure(labels, [[1, 2, 0, 1], [0, 1]], [[1, 2, 0, 0], [0, 1]])  # 2 of 3 spans, none wrong
    assert scores["score"] == pytest.approx(0.8) and scores["precision"] == 1 and scores["recall"] == pytest.approx(2 / 3)
    assert measure(labels, [[1, 2]], [[1, 0]])["score"] == 0  # half a span is no span
    assert measure(labels, [[1, 2]], [[0, 0]])["score"] == 0


def test_words_are_scored_by_class() -> None:
    scores = measure(LabelSet(("A", "B", "C")), [[0, 0, 1], [1]], [[0, 1, 1], [1]])
    assert scores["score"] == scores["accuracy"] == 0.75
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
