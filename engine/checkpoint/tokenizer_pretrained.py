"""The tokenizer.json of vocabularies that pretrained models come with: WordPiece, byte-level BPE and SentencePiece unigrams.

Pieces and their order: BERT's vocab.txt, GPT-2's and RoBERTa's vocab.json with merges.txt, XLM-R's and CamemBERT's sentencepiece.bpe.model,
whose numbers fairseq shifted: by one behind <s>, <pad>, </s>, <unk>, and by four behind tokens of which CamemBERT uses <pad> and <unk>.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from engine.checkpoint.sentencepiece import CONTROL, USER_DEFINED, SentencePiece, read_sentencepiece
from engine.errors import ConversionError, Problem

BERT_ROLES = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
ROBERTA_ROLES = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "cls_token": "<s>",
    "pad_token": "<pad>",
    "sep_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
XLM_R_FIRST = ("<s>", "<pad>", "</s>", "<unk>")
CAMEMBERT_FIRST = ("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED")
UNSEEN = (  # control characters, line and paragraph ends, zero-width characters, marks of direction and of byte order
    *range(0x01, 0x20),
    *range(0x7F, 0xA0),
    0x180E,
    *range(0x200B, 0x2010),
    *range(0x2028, 0x202F),
    *range(0x2060, 0x2065),
    0xFEFF,
)


def word_pieces(
    tokens: Sequence[str], *, lower: bool, chinese: bool, strip_accents: bool | None, roles: Mapping[str, str] = BERT_ROLES
) -> str:
    """BERT and DistilBERT: entry i of vocab.txt is id i. lower, chinese, strip_accents and roles as in tokenizer_config.json."""
    numbers = {token: index for index, token in enumerate(tokens)}
    backend = Backend(models.WordPiece(numbers, unk_token=roles["unk_token"], max_input_chars_per_word=100))
    backend.normalizer = normalizers.BertNormalizer(True, chinese, strip_accents, lower)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.add_special_tokens([token for token in roles.values() if token in numbers])
    _between(backend, roles, numbers)
    return str(backend.to_str())


def byte_pairs(
    numbers: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    *,
    roles: Mapping[str, str] | None,
    prefix_space: bool,
    begins_with: str | None = None,
) -> str:
    """GPT-2 without roles, a text after `begins_with` if given; with them RoBERTa, whose mask takes the space before it."""
    backend = Backend(models.BPE(dict(numbers), list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    if roles is not None:
        _special(backend, roles, numbers)
        _between(backend, roles, numbers, twice=True)
    elif "<|endoftext|>" in numbers:
        backend.add_special_tokens(["<|endoftext|>"])
    if begins_with is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{begins_with} $A", pair=f"{begins_with} $A $B:1", special_tokens=[(begins_with, numbers[begins_with])]
        )
    return str(backend.to_str())


def unigrams(model: bytes, *, roles: Mapping[str, str] = ROBERTA_ROLES, camembert: bool, source: str) -> str:
    """XLM-R, CamemBERT: the pieces of a SentencePiece unigram model behind those of fairseq, <mask> last. Raises ConversionError."""
    held = read_sentencepiece(model, source)
    if roles["unk_token"] != "<unk>":
        raise ConversionError(Problem("unk_token", "<unk>, the piece of unknown characters", repr(roles["unk_token"])), source=source)
    pieces = [(piece.text, piece.score) for piece in held.pieces]
    first, own = (CAMEMBERT_FIRST, pieces[1:]) if camembert else (XLM_R_FIRST, pieces[3:])  # SentencePiece's own first: <unk> <s> </s>
    vocabulary = [(token, 0.0) for token in first] + own + [("<mask>", 0.0)]
    numbers = {token: index for index, (token, _) in enumerate(vocabulary)}
    outside = [name for name in ("cls_token", "sep_token") if roles[name] not in numbers]
    if missing := [Problem(name, "a token of the vocabulary", repr(roles[name])) for name in outside]:
        raise ConversionError(missing, source=source)
    backend = Backend(models.Unigram(vocabulary, unk_id=numbers["<unk>"]))
    backend.normalizer = normalizers.Sequence(_steps(held))
    scheme = "always" if held.prefix else "never"
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=scheme)
    backend.add_special_tokens([token for token in dict.fromkeys((*first, "<s>", "</s>")) if token in numbers])
    backend.add_tokens([AddedToken(piece.text, normalized=False) for piece in held.pieces if piece.kind == USER_DEFINED])
    backend.add_special_tokens([piece.text for piece in held.pieces if piece.kind == CONTROL and piece.text in numbers])
    _special(backend, roles, numbers)
    _between(backend, roles, numbers, twice=True)
    return str(backend.to_str())


def _steps(held: SentencePiece) -> list[Any]:
    """The normaliser: its table, then one space for several and none at the end.

    The library applies the table to clusters of characters (grapheme clusters), and a zero-width one inside a cluster would be lost or
    kept with it; characters the table makes a space or nothing are replaced first, one by one.
    """
    steps: list[Any] = []
    if held.table:
        table = normalizers.Precompiled(held.table)
        now = {character: table.normalize_str(character) for character in map(chr, UNSEEN)}
        for replacement in ("", " "):
            if found := [f"\\x{{{ord(character):x}}}" for character, becomes in now.items() if becomes == replacement]:
                steps.append(normalizers.Replace(Regex(f"[{''.join(found)}]"), replacement))
        steps.append(table)
    if held.single_spaces:
        steps += [normalizers.Strip(left=False), normalizers.Replace(Regex(" {2,}"), " ")]
    return steps


def _special(backend: Backend, roles: Mapping[str, str], numbers: Mapping[str, int]) -> None:
    """The tokens of RoBERTa's roles, of which the mask takes the space before it."""
    mask = roles.get("mask_token")
    backend.add_special_tokens([token for token in roles.values() if token in numbers and token != mask])
    if mask in numbers:
        backend.add_special_tokens([AddedToken(mask, lstrip=True)])


def _between(backend: Backend, roles: Mapping[str, str], numbers: Mapping[str, int], *, twice: bool = False) -> None:
    """A text stands between two tokens, a second one behind it (RoBERTa: with the last token doubled), as type 1 for BERT."""
    first, last = roles["cls_token"], roles["sep_token"]
    if first not in numbers or last not in numbers:
        return
    pair = ["first", "$A", "last", "last", "$B", "last"] if twice else ["first", "$A", "last", "$B:1", "last:1"]
    backend.post_processor = processors.TemplateProcessing(  # tokens by other names here: theirs may hold a colon or a space
        single=["first", "$A", "last"],
        pair=pair,
        special_tokens=[
            {"id": "first", "ids": [numbers[first]], "tokens": [first]},
            {"id": "last", "ids": [numbers[last]], "tokens": [last]},
        ],
    )
