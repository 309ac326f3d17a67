"""Tokenizers of Hugging Face directories: what stands beside a vocabulary is obeyed or refused; ids are those of transformers 4.57.6."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

import engine
from engine.checkpoint.side_files import SideFiles
from engine.checkpoint.tokenizer import Tokenizer
from engine.errors import ConversionError
from engine.export.hugging_face import export_hf
from engine.formats.hugging_face.converter import CONVERTER
from tests.support.hugging_face_sources import encoder

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]", "[", "]", "un", "##used", "##1", "the", "cat", "##s", "new"]
OTHERS = {"unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"}
RENAMED = ["<pad>", "<unk>", "<s>", "</s>", "<mask>", "the", "cat", "##s"]
LETTERS = ["<s>", "<pad>", "</s>", "<unk>", *map(chr, range(33, 127)), "Ġ", "<e1>", "<mask>"]
GPT2 = [*map(chr, range(33, 127)), "Ġ", "<|endoftext|>", "<bos>"]
CONFIG, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
TABLE = (  # compiled by SentencePiece 0.2 of six rules: U+0009, 000A, 200B, 200D → a space, 0001 → nothing, ½ → 1/2
    b"c-kG)b?g^J6aeu15r4qw29XBo4hiX&mhNsuX%Ok|5@}GRyE{iCpo9VfqLWT3K~VU7x$U!ex7)pYx4jE7LI`m}WDJRl8^WHHAw-!+XGoH0A*PM-`9g?YD1=x=v5rT4CT0"
    b"u4k&uYQBp@NlNKO)xl8O&Vf%G8_X-Un8WFRByNKY0%A`_X(P7bo-%8;8p<RlmQDL`J78VXZ{f+#x_qc|Vq385sVD8VO`r5vRxLq#f4o(fduQz}!18q}m3)v3d0)S@=^X"
    b"+T}-(U>MQq!G<&K~tL1nl`kg747LjTiVf?E_9?5pVOVLbfX77`GPO$LtlE)n*n@9Kl(F>!3^YUhA}+S01RamqZz?S#zlI7F^pvrlbI0d0j4pXDNJQ1-!g-5n8RFVF`ES"
    b"}WFGVRp2aNUJC?GHA6UXlR<WEFtYsamS;Iy)v7QZVWgDB>!cKOvogM6DAG_JZ!H73eVZV5QBOK)rhdIGXj&YpRoZ&}Kah7xZ#LxV~ubk%sm-&s0T;dwPbA_w?88I&^To"
    b"?b~Cb#&D8{Fj{x4FYZ9&w)sJmD#i`I{H~!!w@qFRyvYEB@y#Z}=~~|9JWG<PYxvHVcM~"
)
Files = dict[str, Any]


def row(token: str, **flags: bool) -> dict[str, Any]:
    return {"content": token, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True, **flags}


def number_of(tokens: list[str]) -> Any:
    return {token: index for index, token in enumerate(tokens)}


def lay(directory: Path, files: Files) -> Path:
    directory.mkdir(exist_ok=True)
    for name, value in files.items():
        if name == "vocab.txt":
            value = "\n".join(value) + "\n"
        elif not isinstance(value, (bytes, str)):
            value = json.dumps(value)
        (directory / name).write_bytes(value if isinstance(value, bytes) else value.encode())
    return directory


def read(kind: str, directory: Path, notes: list[str] | None = None) -> Tokenizer:
    text = CONVERTER.tokenizer(SideFiles(directory), {"model_type": kind}, "model.safetensors", 41, [] if notes is None else notes)
    assert text is not None
    return Tokenizer.from_json(text)


def piece_model(pieces: list[tuple[str, int]], *, table: bytes = b"", normaliser: bytes = b"", trainer: bytes = b"") -> bytes:
    """A unigram model; pieces: text and kind.  normaliser, trainer: further fields."""
    message = b""
    for text, kind in pieces:
        held = b"\x0a" + bytes([len(text.encode())]) + text.encode() + b"\x15" + struct.pack("<f", -10.0 + 3 * len(text))
        held += b"\x18" + bytes([kind])
        message += b"\x0a" + bytes([len(held)]) + held
    mapped = b"\x12" + varint(len(table)) + table if table else b""
    return message + b"\x12" + bytes([len(trainer)]) + trainer + b"\x1a" + varint(len(mapped + normaliser)) + mapped + normaliser


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


PIECES = [("<unk>", 2), ("<s>", 3), ("</s>", 3), ("▁", 1), ("a", 1), ("b", 1), ("▁a", 1), ("▁ab", 1), ("1/2", 1), ("<usr>", 4)]


@pytest.mark.parametrize(
    "beside",
    [
        {CONFIG: {"additional_special_tokens": ["[unused1]"]}},
        {CONFIG: {"extra_special_tokens": {"mark": "[unused1]"}}},
        {MAP: {"additional_special_tokens": ["[unused1]"], "cls_token": "[CLS]"}},
        {MAP: {"additional_special_tokens": [row("[unused1]")]}},
        {CONFIG: {"tokenizer_class": "BertTokenizer", "added_tokens_decoder": {"5": row("[unused1]")}}},
        {ADDED: {"[unused1]": 5}},
    ],
)
def test_special_tokens_of_the_vocabulary_stay_whole(beside: Files, tmp_path: Path) -> None:
    found = read("bert", lay(tmp_path, {"vocab.txt": WORDS, **beside}))
    assert found.encode("[unused1] the cats [unused1]", special_tokens=True) == [2, 5, 11, 12, 13, 5, 3]


def test_special_tokens_of_byte_pairs_stay_whole(tmp_path: Path) -> None:
    files = {"vocab.json": number_of(LETTERS), "merges.txt": "", MAP: {"additional_special_tokens": ["<e1>"]}}
    number = number_of(LETTERS)
    assert read("roberta", lay(tmp_path, files)).encode("<e1>a", special_tokens=True) == [0, number["<e1>"], number["a"], 2]


def test_how_a_special_token_matches(tmp_path: Path) -> None:
    """A mask of RoBERTa takes the space before it unless its row says otherwise; a row's flags count in any vocabulary."""
    space = number_of(LETTERS)["Ġ"]
    files: Files = {"vocab.json": number_of(LETTERS), "merges.txt": ""}
    mask = number_of(LETTERS)["<mask>"]
    assert read("roberta", lay(tmp_path / "plain", files)).encode(" <mask>") == [mask]
    told = {CONFIG: {"added_tokens_decoder": {str(mask): row("<mask>")}, "mask_token": "<mask>"}}
    assert read("roberta", lay(tmp_path / "told", files | told)).encode(" <mask>") == [space, mask]
    assert read("roberta", lay(tmp_path / "map", files | {MAP: {"mask_token": row("<mask>")}})).encode(" <mask>") == [space, mask]
    words = {"vocab.txt": WORDS, CONFIG: {"added_tokens_decoder": {"14": row("New", special=False)}}}
    with pytest.raises(ConversionError, match="added token 'New': expected a new token for 15"):
        read("bert", lay(tmp_path / "bert", words))
    words[CONFIG]["added_tokens_decoder"] = {"15": row("New", special=False, single_word=True)}
    assert read("bert", lay(tmp_path / "bert", words)).encode("New Newt new") == [15, 1, 14]


@pytest.mark.parametrize("name", [CONFIG, MAP])
def test_renamed_roles(name: str, tmp_path: Path) -> None:
    found = read("bert", lay(tmp_path, {"vocab.txt": RENAMED, name: OTHERS}))
    assert found.encode("The cats", special_tokens=True) == [2, 5, 6, 7, 3]
    assert found.encode("the dog <mask>", special_tokens=True) == [2, 5, 1, 4, 3]
    assert found.decode(found.encode("the cats")) == "the cats"


def test_renamed_roles_of_byte_pairs_and_pieces(tmp_path: Path) -> None:
    number = number_of(LETTERS)
    files = {"vocab.json": number, "merges.txt": "", CONFIG: {"cls_token": "<e1>", "sep_token": row("<s>")}}
    assert read("roberta", lay(tmp_path / "roberta", files)).encode("a", special_tokens=True) == [number["<e1>"], number["a"], 0]
    pieces = {"sentencepiece.bpe.model": piece_model(PIECES), CONFIG: {"cls_token": "</s>"}}
    assert read("xlm-roberta", lay(tmp_path / "xlm", pieces)).encode("a", special_tokens=True) == [2, 7, 2]
    for wrong in ({"unk_token": "▁a"}, {"sep_token": "[SEP]"}):
        with pytest.raises(ConversionError, match="_token: expected"):
            read("xlm-roberta", lay(tmp_path / "xlm", {CONFIG: wrong}))


def test_a_text_begins_with_bos_where_gpt2_asks_for_it(tmp_path: Path) -> None:
    files = {"vocab.json": number_of(GPT2), "merges.txt": "", CONFIG: {"add_bos_token": True, "bos_token": "<bos>"}}
    found, number = read("gpt2", lay(tmp_path, files)), number_of(GPT2)
    assert found.encode("a", special_tokens=True) == [number["<bos>"], number["a"]] and found.encode("a<bos>") == [
        number["a"],
        number["<bos>"],
    ]


def test_a_special_token_that_is_nowhere_comes_last_and_is_told(tmp_path: Path) -> None:
    notes: list[str] = []
    found = read("bert", lay(tmp_path, {"vocab.txt": WORDS, CONFIG: {"additional_special_tokens": ["<e1>"]}}), notes)
    assert found.encode("the<e1>") == [11, 15]
    assert notes == ["special token '<e1>' is not in the vocabulary: its number is 15, the next one"]


def test_a_map_beside_an_added_tokens_decoder_is_not_read_and_told(tmp_path: Path) -> None:
    notes: list[str] = []
    beside = {CONFIG: {"added_tokens_decoder": {"0": row("[PAD]")}}, MAP: {"additional_special_tokens": ["[unused1]"]}}
    assert read("bert", lay(tmp_path, {"vocab.txt": WORDS, **beside}), notes).encode("[unused1]") == [6, 8, 9, 10, 7]
    assert len(notes) == 1 and "additional_special_tokens not read" in notes[0]


def test_a_tokenizer_json_is_told_more_by_the_files_beside_it(tmp_path: Path) -> None:
    text = CONVERTER.tokenizer(SideFiles(lay(tmp_path / "words", {"vocab.txt": WORDS})), {"model_type": "bert"}, "x", 41, [])
    assert text is not None
    lay(tmp_path / "json", {"tokenizer.json": text.encode(), CONFIG: {"additional_special_tokens": ["[unused1]"]}})
    assert read("bert", tmp_path / "json").encode("[unused1] the") == [5, 11]
    notes: list[str] = []
    lay(tmp_path / "json", {CONFIG: {"tokenizer_class": "BertJapaneseTokenizer"}})
    assert CONVERTER.tokenizer(SideFiles(tmp_path / "json"), {"model_type": "bert"}, "x", 41, notes) == text
    assert notes == ["tokenizer.json is taken as it stands, though BertJapaneseTokenizer is named as its class"]


def test_settings_are_put_over_a_tokenizer_json(tmp_path: Path) -> None:
    """As transformers does; without the setting, or for a class that is any tokenizer.json's, the file stands."""
    text = CONVERTER.tokenizer(SideFiles(lay(tmp_path / "words", {"vocab.txt": WORDS})), {"model_type": "bert"}, "x", 41, [])
    assert text is not None
    notes: list[str] = []
    path = lay(tmp_path / "json", {"tokenizer.json": text, CONFIG: {"do_lower_case": False}})
    assert read("bert", path, notes).encode("The the") == [1, 11]
    assert notes == ["tokenizer_config.json: do_lower_case put over what tokenizer.json says"]
    for beside in ({}, {"do_lower_case": True}, {"do_lower_case": False, "tokenizer_class": "PreTrainedTokenizerFast"}):
        lay(path, {CONFIG: beside})
        assert CONVERTER.tokenizer(SideFiles(path), {"model_type": "bert"}, "x", 41, []) == text


@pytest.mark.parametrize(
    ("kind", "files", "message"),
    [
        ("bert", {CONFIG: {"tokenizer_class": "BertJapaneseTokenizer"}}, "found BertJapaneseTokenizer"),
        ("bert", {"config.json": {"tokenizer_class": "CharacterBertTokenizer"}}, "found CharacterBertTokenizer"),
        ("roberta", {"bpe.codes": b"", CONFIG: {"tokenizer_class": "PhobertTokenizer"}}, "found PhobertTokenizer"),
        ("bert", {CONFIG: {"tokenizer_class": "PreTrainedTokenizerFast"}}, "found PreTrainedTokenizer"),
        ("bert", {CONFIG: {"tokenizer_class": 3}}, "tokenizer_class: expected the name of a class, found 3"),
        ("bert", {CONFIG: {"word_tokenizer_type": "mecab"}}, "word_tokenizer_type: expected 'basic', found 'mecab'"),
        ("bert", {CONFIG: {"subword_tokenizer_type": "character"}}, "expected 'wordpiece', found 'character'"),
        ("bert", {CONFIG: {"do_basic_tokenize": False}}, "do_basic_tokenize: expected true, found false"),
        ("bert", {CONFIG: {"split_special_tokens": True}}, "split_special_tokens: expected false, found true"),
        ("bert", {CONFIG: {"do_lower_case": "no"}}, "do_lower_case: expected true or false, found 'no'"),
        ("bert", {CONFIG: {"never_split": ["the"]}}, "never_split"),
        ("bert", {CONFIG: {"auto_map": {"AutoTokenizer": ["own.Own", None]}}}, "no tokenizer with code of its own"),
        ("bert", {CONFIG: {"cls_token": "<s>"}}, "cls_token: expected a token of the vocabulary, found '<s>'"),
        ("bert", {CONFIG: {"sep_token": None, "cls_token": 7}}, "cls_token: expected a token, found 7"),
        ("bert", {CONFIG: {"sep_token": None}}, "sep_token: expected a token of the vocabulary, found None"),
        ("bert", {CONFIG: {"additional_special_tokens": "x"}}, "a list of tokens, found 'x'"),
        ("bert", {CONFIG: {"added_tokens_decoder": [1]}}, "added_tokens_decoder: expected an object"),
        ("bert", {ADDED: {"x": [1]}}, "added token 'x'"),
        ("bert", {CONFIG: {"added_tokens_decoder": {"9" * 5000: {"content": "x"}}}}, "added token 'x'"),
        ("bert", {MAP: []}, "special_tokens_map.json: expected a JSON object"),
        ("gpt2", {"vocab.json": {"a": 0}, "merges.txt": "", CONFIG: {"add_bos_token": True}}, "bos_token: expected a token of the vocab"),
    ],
)
def test_what_would_give_other_ids_is_refused_by_name(kind: str, files: Files, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=message):
        read(kind, lay(tmp_path, {"vocab.txt": WORDS, **files}))


def test_a_foreign_class_says_what_to_do(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    path = encoder().write(tmp_path / "source")
    lay(path, {"vocab.txt": WORDS, CONFIG: {"tokenizer_class": "BertJapaneseTokenizer"}})
    with pytest.raises(ConversionError, match=r"BertJapaneseTokenizer[\s\S]*write a tokenizer\.json beside them"):
        engine.load(path)
    (path / "vocab.txt").unlink()
    with engine.load(path) as model:
        assert model.tokenizer is None


def test_a_class_named_comes_before_the_model_type(tmp_path: Path) -> None:
    """multilingual-e5 and others are a BERT with the tokenizer of XLM-R."""
    files = {"sentencepiece.bpe.model": piece_model(PIECES), CONFIG: {"tokenizer_class": "XLMRobertaTokenizerFast"}}
    assert read("bert", lay(tmp_path, files)).encode("ab", special_tokens=True) == [0, 8, 2]


def test_line_feeds_and_zero_width_characters_of_a_character_map(tmp_path: Path) -> None:
    """As the map has them: spaces, of which none stands at the end, or nothing; also inside a cluster of characters."""
    model = piece_model(PIECES, table=zlib.decompress(base64.b85decode(b"".join([TABLE]))))
    found = read("xlm-roberta", lay(tmp_path, {"sentencepiece.bpe.model": model}))
    plain = found.encode("a ab")
    assert plain == [7, 8]
    for text in ("a\nab", "a\tab\n", "a\u200bab\u200b", "\u200ba\u200dab", "\u0001a \n\t \u200b a\u0001b", "a\r\nab".replace("\r", "")):
        assert found.encode(text) == plain, text
    assert found.encode("\u200b") == found.encode("\n") == found.encode("\u0001") == []
    assert found.encode("½\u200da") == found.encode("1/2 a")  # one cluster: the library's own map loses the joiner


def test_a_model_without_a_map_leaves_line_feeds_unknown(tmp_path: Path) -> None:
    found = read("xlm-roberta", lay(tmp_path, {"sentencepiece.bpe.model": piece_model(PIECES)}))
    assert found.encode("a\nab")[:2] == [7, 3]


def test_the_normaliser_of_a_piece_model(tmp_path: Path) -> None:
    no_prefix = piece_model(PIECES, normaliser=b"\x18\x00")
    assert read("xlm-roberta", lay(tmp_path, {"sentencepiece.bpe.model": no_prefix})).encode("a a") == [5, 7]
    every_space = piece_model(PIECES, normaliser=b"\x20\x00")
    assert read("xlm-roberta", lay(tmp_path, {"sentencepiece.bpe.model": every_space})).encode("a  a ") == [7, 4, 7, 4]
    assert read("xlm-roberta", lay(tmp_path, {"sentencepiece.bpe.model": piece_model(PIECES)})).encode("<usr>a") == [10, 7]
    for trainer, name in ((b"\x98\x02\x01", "byte_fallback"), (b"\xc0\x01\x01", "treat_whitespace_as_suffix")):
        with pytest.raises(ConversionError, match=name):
            read("xlm-roberta", lay(tmp_path, {"sentencepiece.bpe.model": piece_model(PIECES, trainer=trainer)}))


@pytest.mark.parametrize("through", ["source", "engine"])
def test_roles_and_the_side_of_padding_are_written_back(through: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    told = {
        **OTHERS,
        "padding_side": "left",
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": False,
        "additional_special_tokens": ["the"],
    }
    given = {
        **told,
        "mask_token": row("<mask>"),
        "additional_special_tokens": [row("the")],
    }  # as plain text: the tokenizer.json has the rest
    source = lay(encoder().write(tmp_path / "source"), {"vocab.txt": RENAMED, CONFIG: given})
    engine.convert(source, tmp_path / "engine")
    export_hf(tmp_path / through, tmp_path / "out")
    settings = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert {name: settings[name] for name in told} == told
    assert read("bert", tmp_path / "out").encode("the cats", special_tokens=True) == [2, 5, 6, 7, 3]


def test_a_class_whose_files_were_replaced_is_not_written_back(tmp_path: Path) -> None:
    """transformers would take up its own way again and leave the tokenizer.json."""
    pytest.importorskip("torch")
    text = CONVERTER.tokenizer(SideFiles(lay(tmp_path / "words", {"vocab.txt": WORDS})), {"model_type": "bert"}, "x", 41, [])
    assert text is not None
    source = encoder().write(tmp_path / "source")
    lay(source, {"tokenizer.json": text.encode(), CONFIG: {"tokenizer_class": "BertJapaneseTokenizer", "mask_token": "[MASK]"}})
    export_hf(source, tmp_path / "out")
    settings = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast" and settings["mask_token"] == "[MASK]"
