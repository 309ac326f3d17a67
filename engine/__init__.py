"""Headcount: an inference engine for head-pruned Transformers. Nothing heavy is imported before it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.version import __version__ as __version__

if TYPE_CHECKING:
    from engine import errors as errors
    from engine.loading import convert as convert
    from engine.loading import load as load
    from engine.model import Model as Model
    from engine.spec import ModelSpec as ModelSpec

__all__ = ["Model", "ModelSpec", "__version__", "convert", "errors", "load"]

_HOMES = {"Model": "engine.model", "convert": "engine.loading", "load": "engine.loading", "ModelSpec": "engine.spec"}


def __getattr__(name: str) -> Any:
    import importlib

    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name == "errors":
        value = importlib.import_module("engine.errors")
    else:
        raise AttributeError(f"module 'engine' has no attribute {name!r}")
    globals()[name] = value  # found once
    return value


def __dir__() -> list[str]:
    return __all__
