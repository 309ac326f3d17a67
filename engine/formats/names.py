"""Names of a state dict: what wrappers put before them, and under which entry of a file it lies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from engine.errors import Problem

Value = TypeVar("Value")
WRAPPERS = ("module", "network", "model", "_orig_mod", "_forward_module", "_fsdp_wrapped_module")  # in front, in any order and number
ANYWHERE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # in front of any part of a model
STATE_DICTS = ("network", "model", "state_dict", "model_state_dict", "model_state", "module", "net")  # aiha-lab, FAIR, common
DEEPEST = 3  # entries within entries


def unwrapped(name: str) -> str:
    """module._orig_mod.bert.x → bert.x, bert._orig_mod.x → bert.x; a.module.b stays."""
    parts = [part for part in name.split(".") if part not in ANYWHERE]
    while len(parts) > 1 and parts[0] in WRAPPERS:
        del parts[0]
    return ".".join(parts)


def common_prefix(names: list[str]) -> str:
    """The first part that all names share, with its dot; empty where there is none."""
    first, dot, _ = names[0].partition(".") if names else ("", "", "")
    return first + dot if dot and all(name.startswith(first + dot) for name in names) else ""


def renamed(values: Mapping[str, Value], rename: Callable[[str], str], problems: list[Problem]) -> dict[str, Value]:
    """The same values by other names; two names that become one are a problem."""
    result: dict[str, Value] = {}
    origin: dict[str, str] = {}
    for name, value in values.items():
        short = rename(name)
        if short in result:
            problems.append(Problem(name, f"one tensor named {short}", f"{origin[short]} as well"))
        result[short], origin[short] = value, name
    return result


def is_average(name: str) -> bool:
    """Whether a key or a prefix tells an exponential moving average of the weights: ema, model_ema, ema_state_dict."""
    return "ema" in name.lower().replace(".", "_").split("_")


def find_state_dict(content: Mapping[Any, Any], is_tensor: Callable[[Any], bool], notes: list[str]) -> Mapping[Any, Any] | None:
    """The mapping that holds the tensors: under one of STATE_DICTS, else `content` itself, else an average; None where none does."""
    found = _candidates(content, is_tensor, DEEPEST)
    trained = [key for key in STATE_DICTS if key in found]
    averages = [key for key in found if key not in trained]
    if not trained and any(is_tensor(value) for value in content.values()):
        return content
    if not trained and not averages:
        return None
    chosen, *others = [*trained, *averages]
    if others:
        notes.append(f"the tensors under {chosen} are read, not those under {', '.join(others)}")
    elif averages:
        notes.append(f"the tensors under {chosen} are read, an average of the trained ones, which the file does not have")
    return found[chosen]


def _candidates(content: Mapping[Any, Any], is_tensor: Callable[[Any], bool], depth: int) -> dict[str, Mapping[Any, Any]]:
    """Entries of the usual names that hold tensors, or one that does."""
    found: dict[str, Mapping[Any, Any]] = {}
    for key, inner in content.items():
        if not isinstance(key, str) or not isinstance(inner, Mapping) or not (key in STATE_DICTS or is_average(key)):
            continue
        within = _candidates(inner, is_tensor, depth - 1) if depth > 1 else {}
        state = next((within[name] for name in STATE_DICTS if name in within), None)
        if state is not None or any(is_tensor(value) for value in inner.values()):
            found[key] = inner if state is None else state
    return found
