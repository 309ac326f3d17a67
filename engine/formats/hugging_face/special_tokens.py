"""What stands beside a vocabulary: settings, roles of special tokens and added tokens, and their place in a tokenizer.

Three files say it: tokenizer_config.json; special_tokens_map.json, which counts only where the first has no added_tokens_decoder;
added_tokens.json, numbers of tokens behind the vocabulary.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from engine.checkpoint.side_files import SideFiles
from engine.errors import ConversionError, Problem

SETTINGS, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
FURTHER = ("additional_special_tokens", "extra_special_tokens")  # the names of transformers 4 and 5
WRITTEN_BACK = (*ROLES, *FURTHER, "padding_side", "truncation_side", "model_input_names", "tokenizer_class")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
TOLD_AGAIN = {  # part of a tokenizer.json → its settings by their names in tokenizer_config.json, which transformers puts over them
    "BertNormalizer": {"lowercase": "do_lower_case", "strip_accents": "strip_accents", "handle_chinese_chars": "tokenize_chinese_chars"},
    "ByteLevel": {"add_prefix_space": "add_prefix_space"},
}
NUMBER = re.compile(r"[0-9]{1,10}")  # int refuses thousands of digits with an error of its own
Flags = dict[str, bool]
Added = tuple[Any, Any, Flags]  # number, token, how it matches


@dataclass(frozen=True)
class Told:
    """settings: tokenizer_config.json, roles as plain text.  special: token → how it matches, None where only its text is given.

    added: tokens with numbers, in their order.  written_back: what a tokenizer.json has no place for, tokens as plain text.
    """

    settings: Mapping[str, Any]
    special: Mapping[str, Flags | None]
    added: list[Added]
    written_back: Mapping[str, Any]


def read_told(files: SideFiles, notes: list[str]) -> Told:
    """Raises ConversionError with everything in the three files that is of the wrong type."""
    settings = dict(files.json_object(SETTINGS)) if files.has(SETTINGS) else {}
    beside = files.json_object(SPECIAL) if files.has(SPECIAL) else {}
    if settings.get("added_tokens_decoder") is None:
        settings |= {name: value for name, value in beside.items() if name not in FURTHER}
        for name in FURTHER:
            if beside.get(name):
                settings[name] = _joined(settings.get(name), beside[name])
    elif unread := [name for name in beside if name in (*ROLES, *FURTHER) and name not in settings]:
        notes.append(f"{SPECIAL}: {', '.join(unread)} not read: {SETTINGS} has an added_tokens_decoder, and stands alone then")
    problems: list[Problem] = []
    special: dict[str, Flags | None] = {}
    for name in ROLES:
        if settings.get(name) is not None:
            settings[name] = _special(name, settings[name], special, problems)
    for name in FURTHER:
        settings[name] = _further(name, settings.get(name) or [], special, problems)
    if isinstance(settings[FURTHER[1]], list):  # a list by the name of transformers 5 is what 4 calls additional
        settings[FURTHER[0]] = _joined(settings[FURTHER[0]], settings.pop(FURTHER[1]))
    told = settings.get("added_tokens_decoder") or {}
    if not isinstance(told, dict):
        problems.append(Problem(f"{SETTINGS} added_tokens_decoder", "an object, number → token", repr(told)[:60]))
    if problems:
        raise ConversionError(problems, source=str(files.folder))
    written_back = {name: settings[name] for name in WRITTEN_BACK if settings.get(name)}
    return Told(settings, special, _added(files, told, special), written_back)


def _added(files: SideFiles, told: Mapping[str, Any], special: Mapping[str, Any]) -> list[Added]:
    """Of added_tokens.json, and of the added_tokens_decoder, which says of the same numbers how they match."""
    plain = files.json_object(ADDED) if files.has(ADDED) else {}
    rows: dict[str, Added] = {str(number): (number, token, {}) for token, number in plain.items()}
    for text, row in told.items():
        held = row if isinstance(row, dict) else {}
        rows[text] = (int(text) if NUMBER.fullmatch(text) else text, held.get("content"), _flags(held))
    named = [(number, token, {**flags, "special": True} if token in special else flags) for number, token, flags in rows.values()]
    return sorted(named, key=lambda row: row[0] if isinstance(row[0], int) else -1)


def put_over(text: str, settings: Mapping[str, Any], notes: list[str]) -> str:
    """A tokenizer.json with what tokenizer_config.json says otherwise, which is noted; the same text where it says nothing else."""
    parts, changed = json.loads(text), []
    for step in filter(None, (parts.get("normalizer"), parts.get("pre_tokenizer"))):
        for ours, theirs in TOLD_AGAIN.get(step["type"], {}).items():
            if isinstance(settings.get(theirs), bool) and step.get(ours) is not settings[theirs]:
                step[ours] = settings[theirs]
                changed.append(theirs)
    if not changed:
        return text
    notes.append(f"{SETTINGS}: {', '.join(changed)} put over what tokenizer.json says")
    return json.dumps(parts, ensure_ascii=False)


def placed(backend: Backend, told: Told, source: str, notes: list[str]) -> Backend:
    """With the tokens that stay whole in a text: those added, at their numbers, and the special ones, in the vocabulary or behind it.

    Raises ConversionError for a number that is not the token's own or the next one.
    """
    for number, token, flags in told.added:
        expected, known = _next(backend), backend.token_to_id(token) if isinstance(token, str) else None
        if not isinstance(token, str) or not token or number != (expected if known is None else known):
            wanted = f"a new token for {expected}, the next number"
            raise ConversionError(Problem(f"added token {str(token)[:40]!r}", wanted, repr(number)[:40]), source=source)
        backend.add_tokens([AddedToken(token, **flags)])
    whole = {token.content for token in backend.get_added_tokens_decoder().values()}
    rows = {token for _, token, _ in told.added}
    for token, plain in told.special.items():
        if token in rows or (plain is None and token in whole):
            continue
        if backend.token_to_id(token) is None:
            notes.append(f"special token {token!r} is not in the vocabulary: its number is {_next(backend)}, the next one")
        backend.add_special_tokens([AddedToken(token, **{"normalized": False, **(plain or {}), "special": True})])
    return backend


def _next(backend: Backend) -> int:
    return int(backend.get_vocab_size())


def _special(name: str, value: Any, special: dict[str, Flags | None], problems: list[Problem]) -> str | None:
    """Note a special token, text or an object with `content`, and give its text."""
    text = value.get("content") if isinstance(value, dict) else value
    if not isinstance(text, str) or not text:
        problems.append(Problem(f"{SETTINGS} {name}", "a token", repr(value)[:60]))
        return None
    flags = _flags(value) if isinstance(value, dict) else None
    if special.get(text) is None:
        special[text] = flags
    return text


def _further(name: str, given: Any, special: dict[str, Flags | None], problems: list[Problem]) -> Any:
    """Tokens without a role, or with one by a name of their own: a list or an object of plain texts."""
    if isinstance(given, dict):
        return {role: _special(f"{name} {role}", value, special, problems) for role, value in given.items()}
    if isinstance(given, list):
        return [_special(name, value, special, problems) for value in given]
    problems.append(Problem(f"{SETTINGS} {name}", "a list of tokens", repr(given)[:60]))
    return []


def _flags(row: Mapping[str, Any]) -> Flags:
    return {name: row[name] for name in FLAGS if isinstance(row.get(name), bool)}


def _joined(first: Any, second: Any) -> Any:
    """Both lists, each token once; where one is none it is told later."""
    if not isinstance(first, list) or not isinstance(second, list):
        return first or second
    return [*first, *(token for token in second if token not in first)]
