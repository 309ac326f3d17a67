"""Headcount: an inference engine for head-pruned Transformers. Nothing heavy is imported before it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine import errors as errors
    from engine.loading import convert as convert
    from engine.loading import load as load
    from engine.model import Model as Model
    from engine.spec import ModelSpec as ModelSpec

    __version__: str

__all__ = ["Model", "ModelSpec", "__version__", "convert", "errors", "load"]

_HOMES = {"Model": "engine.model", "convert": "engine.loading", "load": "engine.loading", "ModelSpec": "engine.spec"}
_UNINSTALLED = "0.1.0"  # the version when engine runs from a source tree that was never installed


def __getattr__(name: str) -> Any:
    import importlib

    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name == "errors":
        value = importlib.import_module("engine.errors")
    elif name == "__version__":
        import importlib.metadata  # slow to import, and load has no use for it

        try:
            value = importlib.metadata.version("headcount")
        except importlib.metadata.PackageNotFoundError:
            value = _UNINSTALLED
    else:
        raise AttributeError(f"module 'engine' has no attribute {name!r}")
    globals()[name] = value  # found once
    return value


def __dir__() -> list[str]:
    return __all__
