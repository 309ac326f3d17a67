"""The tokenizer.json of vocabularies that pretrained models come with: WordPiece, byte-level BPE and SentencePiece unigrams.

Pieces and their order: BERT's vocab.txt, GPT-2's and RoBERTa's vocab.json with merges.txt, XLM-R's and CamemBERT's sentencepiece.bpe.model,
whose numbers fairseq shifted: by one behind <s>, <pad>, </s>, <unk>, and by four behind tokens of which CamemBERT uses <pad> and <unk>.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from engine.errors import ConversionError, Problem

BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
XLM_R_FIRST = ("<s>", "<pad>", "</s>", "<unk>")
CAMEMBERT_FIRST = ("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED")
UNIGRAM = 1  # trainer_spec.model_type of a SentencePiece model
Field = tuple[int, Any]  # number, value: an integer, four bytes or a piece of the message


def word_pieces(tokens: Sequence[str], *, lower: bool, chinese: bool, strip_accents: bool | None) -> str:
    """BERT and DistilBERT: entry i of vocab.txt is id i. lower, chinese, strip_accents as in tokenizer_config.json."""
    numbers = {token: index for index, token in enumerate(tokens)}
    backend = Backend(models.WordPiece(numbers, unk_token="[UNK]", max_input_chars_per_word=100))
    backend.normalizer = normalizers.BertNormalizer(True, chinese, strip_accents, lower)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.add_special_tokens([token for token in BERT_SPECIAL if token in numbers])
    _between(backend, "[CLS]", "[SEP]", numbers)
    return str(backend.to_str())


def byte_pairs(numbers: Mapping[str, int], merges: Sequence[tuple[str, str]], *, roberta: bool, prefix_space: bool) -> str:
    """GPT-2, and RoBERTa with <s> and </s> around a text and a <mask> that takes the space before it."""
    backend = Backend(models.BPE(dict(numbers), list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    if roberta:
        backend.add_special_tokens([token for token in XLM_R_FIRST if token in numbers])
        if "<mask>" in numbers:
            backend.add_special_tokens([AddedToken("<mask>", lstrip=True)])
        _between(backend, "<s>", "</s>", numbers, twice=True)
    elif "<|endoftext|>" in numbers:
        backend.add_special_tokens(["<|endoftext|>"])
    return str(backend.to_str())


def unigrams(model: bytes, *, camembert: bool, source: str) -> str:
    """XLM-R, CamemBERT: the pieces of a SentencePiece unigram model behind those of fairseq, <mask> last. Raises ConversionError."""
    pieces, charsmap, kind = _sentencepiece(model, source)
    if kind != UNIGRAM:
        raise ConversionError(Problem("model_type", f"{UNIGRAM} (unigram), what XLM-R and CamemBERT use", str(kind)), source=source)
    first, own = (CAMEMBERT_FIRST, pieces[1:]) if camembert else (XLM_R_FIRST, pieces[3:])  # SentencePiece's own first: <unk> <s> </s>
    vocabulary = [(token, 0.0) for token in first] + own + [("<mask>", 0.0)]
    numbers = {token: index for index, (token, _) in enumerate(vocabulary)}
    backend = Backend(models.Unigram(vocabulary, unk_id=numbers["<unk>"]))
    table = [normalizers.Precompiled(charsmap)] if charsmap else []
    backend.normalizer = normalizers.Sequence([normalizers.Strip(left=False), *table, normalizers.Replace(Regex(" {2,}"), " ")])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    special = dict.fromkeys((*first, "<s>", "</s>"))
    backend.add_special_tokens([*(token for token in special if token in numbers), AddedToken("<mask>", lstrip=True)])
    _between(backend, "<s>", "</s>", numbers, twice=True)
    return str(backend.to_str())


def _between(backend: Backend, first: str, last: str, numbers: Mapping[str, int], *, twice: bool = False) -> None:
    """A text stands between two tokens, a second one behind it (RoBERTa: with the last token doubled), as type 1 for BERT."""
    if first not in numbers or last not in numbers:
        return
    pair = f"{first} $A {last} {last} $B {last}" if twice else f"{first} $A {last} $B:1 {last}:1"
    backend.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", pair=pair, special_tokens=[(first, numbers[first]), (last, numbers[last])]
    )


def _sentencepiece(model: bytes, source: str) -> tuple[list[tuple[str, float]], bytes, int]:
    """(piece, score) of every piece, the normaliser's table, and the kind of model, of sentencepiece_model.proto."""
    pieces: list[tuple[str, float]] = []
    charsmap, kind = b"", UNIGRAM
    try:
        for number, value in _fields(model):
            if number == 1:
                held = dict(_fields(value))
                pieces.append((held[1].decode(), struct.unpack("<f", held.get(2, bytes(4)))[0]))
            elif number == 2:
                kind = dict(_fields(value)).get(3, UNIGRAM)
            elif number == 3:
                charsmap = dict(_fields(value)).get(2, b"")
    except (ValueError, KeyError, IndexError, AttributeError, TypeError, struct.error) as error:
        raise ConversionError(Problem("file", "a SentencePiece model", f"bytes that are none ({error})"[:120]), source=source) from None
    if len(pieces) < 4:
        raise ConversionError(Problem("file", "a SentencePiece model with at least 4 pieces", str(len(pieces))), source=source)
    return pieces, charsmap, kind


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
