"""The tokenizer of a Hugging Face directory: tokenizer.json as it stands, or made from the vocabulary files beside the tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from tokenizers import Tokenizer as Backend

from engine.checkpoint.side_files import SideFiles
from engine.checkpoint.tokenizer import Tokenizer
from engine.checkpoint.tokenizer_pretrained import BERT_ROLES, ROBERTA_ROLES, byte_pairs, unigrams, word_pieces
from engine.errors import ConversionError, Problem
from engine.formats.hugging_face.special_tokens import SETTINGS, Told, placed, put_over, read_told
from engine.formats.source_tokenizer import TOKENIZER

Maker = Callable[[SideFiles, Mapping[str, Any]], str | None]
VOCABULARIES = ("vocab.txt", "vocab.json", "merges.txt", "bpe.codes", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model")
ANY_CLASS = ("PreTrainedTokenizer", "TokenizersBackend")  # said of any tokenizer.json
AS_IT_IS = {  # setting → the values that change no ids; others are refused by name
    "do_basic_tokenize": (True,),
    "word_tokenizer_type": ("basic",),
    "subword_tokenizer_type": ("wordpiece",),
    "split_special_tokens": (False,),
    "wordpieces_prefix": ("##",),
    "sp_model_kwargs": ({},),
}
ON_OFF = ("do_lower_case", "tokenize_chinese_chars", "strip_accents", "add_prefix_space", "add_bos_token")
HINT = "write a tokenizer.json beside them, which is taken as it stands; or take the vocabulary files away and give token ids"


def read_hugging_face_tokenizer(make: Maker, model_type: str, files: SideFiles, notes: list[str]) -> str | None:
    """The text of a tokenizer.json, or None; make: the architecture's own way from vocabulary files, one of those below.

    A tokenizer class named in tokenizer_config.json or config.json comes before it. Raises ConversionError or CheckpointError for files
    that are not what their names say, and for a class or a setting whose ids would be others.
    """
    named = _class_of(files)
    if files.has(TOKENIZER):
        text = files.text(TOKENIZER)
        Tokenizer.from_json(text, source=str(files.folder / TOKENIZER))
        if named is not None and named not in CLASSES and named not in ANY_CLASS:
            notes.append(f"{TOKENIZER} is taken as it stands, though {named} is named as its class")
        told = read_told(files, notes)
        if named not in ANY_CLASS:
            text = put_over(text, told.settings, notes)
        return _guarded(lambda: _with_told(text, told, files, notes), files)
    told = read_told(files, notes)
    unread = [name for name in VOCABULARIES if files.has(name)]
    if unread:
        _refuse_foreign(named, told.settings, files)
    chosen = CLASSES.get(named or "", make)
    if (made := _guarded(lambda: chosen(files, told.settings), files)) is not None:
        return _guarded(lambda: _with_told(made, told, files, notes), files)
    if unread:
        notes.append(f"{', '.join(unread)} not read: no tokenizer is made from them for {named or f'model_type {model_type}'}")
    return None


def word_piece_files(files: SideFiles, settings: Mapping[str, Any]) -> str | None:
    """BERT's kind: vocab.txt."""
    if not files.has("vocab.txt"):
        return None
    tokens = [line.removesuffix("\r") for line in files.text("vocab.txt").removesuffix("\n").split("\n")]
    return word_pieces(
        tokens,
        lower=settings.get("do_lower_case") is not False,
        chinese=settings.get("tokenize_chinese_chars") is not False,
        strip_accents=settings.get("strip_accents"),
        roles=_roles(BERT_ROLES, settings, tokens, files),
    )


def byte_pair_files(files: SideFiles, settings: Mapping[str, Any], *, roberta: bool) -> str | None:
    """GPT-2's kind, and RoBERTa's: vocab.json and merges.txt."""
    if not files.has("vocab.json") or not files.has("merges.txt"):
        return None
    numbers = files.json_object("vocab.json")
    return byte_pairs(
        numbers,
        _merges(files, "merges.txt"),
        roles=_roles(ROBERTA_ROLES, settings, numbers, files) if roberta else None,
        prefix_space=settings.get("add_prefix_space") is True,
        begins_with=_first(settings, numbers, files) if settings.get("add_bos_token") is True and not roberta else None,
    )


def unigram_files(files: SideFiles, settings: Mapping[str, Any], *, camembert: bool) -> str | None:
    """XLM-R's kind, and CamemBERT's: sentencepiece.bpe.model."""
    path = files.folder / "sentencepiece.bpe.model"
    if not files.has(path.name):
        return None
    given = {name: settings[name] for name in ROBERTA_ROLES if name in settings}
    return unigrams(files.bytes(path, ConversionError), roles={**ROBERTA_ROLES, **given}, camembert=camembert, source=str(path))


ROBERTA_FILES, GPT2_FILES = partial(byte_pair_files, roberta=True), partial(byte_pair_files, roberta=False)
WORD_PIECE = ("Bert", "DistilBert", "Electra", "MobileBert", "ConvBert", "LayoutLM", "Lxmert", "RetriBert", "SqueezeBert")
CLASSES: dict[str, Maker] = {  # name without Fast → its maker
    **{f"{name}Tokenizer": word_piece_files for name in WORD_PIECE},
    **{f"{name}Tokenizer": ROBERTA_FILES for name in ("Roberta", "Bart", "Longformer", "LED", "Mvp")},
    "GPT2Tokenizer": GPT2_FILES,
    "XLMRobertaTokenizer": partial(unigram_files, camembert=False),
    "CamembertTokenizer": partial(unigram_files, camembert=True),
}


def _class_of(files: SideFiles) -> str | None:
    """As tokenizer_config.json names it, else config.json; without Fast, which says how it is computed."""
    settings = files.json_object(SETTINGS) if files.has(SETTINGS) else {}
    config = files.json_or_none(files.folder / "config.json")
    for place, value in ((SETTINGS, settings), ("config.json", config)):
        named = value.get("tokenizer_class") if isinstance(value, dict) else None
        if named is not None and (not isinstance(named, str) or not named):
            problem = Problem(f"{place} tokenizer_class", "the name of a class", repr(named)[:60])
            raise ConversionError(problem, source=str(files.folder))
        if named is not None:
            return str(named).removesuffix("Fast")
    return None


def _refuse_foreign(named: str | None, settings: Mapping[str, Any], files: SideFiles) -> None:
    """Raise ConversionError where a tokenizer of ours would give other ids."""
    problems = []
    if named is not None and named not in CLASSES:
        expected = "one whose vocabulary files are read: " + ", ".join(CLASSES)
        problems.append(Problem("tokenizer_class", expected, named[:60]))
    problems += [
        Problem(f"{SETTINGS} {name}", " or ".join(map(_written, plain)), _written(settings[name]))
        for name, plain in AS_IT_IS.items()
        if settings.get(name) is not None and settings[name] not in plain
    ]
    problems += [
        Problem(f"{SETTINGS} {name}", "true or false", _written(settings[name]))
        for name in ON_OFF
        if settings.get(name) is not None and not isinstance(settings[name], bool)
    ]
    if settings.get("never_split"):
        problems.append(Problem(f"{SETTINGS} never_split", "nothing: such words are not made", _written(settings["never_split"])))
    own = settings.get("auto_map")
    if isinstance(own, dict) and own.get("AutoTokenizer"):
        problems.append(Problem(f"{SETTINGS} auto_map", "no tokenizer with code of its own", _written(own["AutoTokenizer"])))
    if problems:
        raise ConversionError(problems, source=str(files.folder), hint=HINT)


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)[:60]


def _roles(defaults: Mapping[str, str], settings: Mapping[str, Any], known: Any, files: SideFiles) -> dict[str, str]:
    """The tokens of the roles; one that a text needs and that is named stands in the vocabulary, or ConversionError is raised."""
    given = {name: settings[name] for name in defaults if name in settings}
    held = set(known)
    problems = [
        Problem(f"{SETTINGS} {name}", "a token of the vocabulary", _written(given[name]))
        for name in ("unk_token", "cls_token", "sep_token")
        if name in given and given[name] not in held
    ]
    if problems:
        raise ConversionError(problems, source=str(files.folder))
    return {name: token for name, token in {**defaults, **given}.items() if token is not None}


def _first(settings: Mapping[str, Any], numbers: Mapping[str, Any], files: SideFiles) -> str:
    first = settings.get("bos_token") or "<|endoftext|>"
    if first not in numbers:
        problem = Problem(f"{SETTINGS} bos_token", "a token of the vocabulary, as add_bos_token needs it", _written(first))
        raise ConversionError(problem, source=str(files.folder))
    return str(first)


def _with_told(text: str, told: Told, files: SideFiles, notes: list[str]) -> str:
    """With what the files beside it say; the same text where they say nothing new."""
    before = Backend.from_str(text)
    plain = str(before.to_str())
    after = str(placed(before, told, str(files.folder), notes).to_str())
    return text if after == plain else after


def _guarded(call: Callable[[], str | None], files: SideFiles) -> str | None:
    try:
        return call()
    except (ConversionError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises bare Exception, and its panics are no Exception
        problem = Problem("vocabulary", "files the tokenizers library takes", str(error)[:200])
        raise ConversionError(problem, source=str(files.folder)) from None


def _merges(files: SideFiles, name: str) -> list[tuple[str, str]]:
    """Pairs by line; a first line may name the version."""
    merges = []
    for number, line in enumerate(files.text(name).split("\n"), start=1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        pair = line.removesuffix("\r").split(" ")
        if len(pair) != 2:
            problem = Problem(f"line {number}", "two pieces with a space between", repr(line)[:60])
            raise ConversionError(problem, source=str(files.folder / name))
        merges.append((pair[0], pair[1]))
    return merges
