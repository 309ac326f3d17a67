"""What every converter is made of: the source's tensors and settings, read strictly, with all problems collected."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from engine.checkpoint import Checkpoint
from engine.checkpoint.side_files import SideFiles
from engine.checkpoint.tensor_file import FLOATS
from engine.errors import ConversionError, Problem
from engine.formats.source_tokenizer import read_tokenizer

REQUIRED: Any = object()  # default of a setting that must be given
COMMON_OPTIONS = ("vocab",)  # read by read_source for every format


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did: heads kept per layer, and notes on choices the source left open."""

    source: str
    format: str
    output_dir: str | None
    source_heads: tuple[int, ...]
    kept: tuple[tuple[int, ...], ...]
    parameters: int
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class SourceTensors:
    """The state dict of a source. Each tensor is taken once; what is missing, misshapen or left over is a collected problem."""

    def __init__(self, tensors: Mapping[str, np.ndarray], problems: list[Problem]) -> None:
        self._tensors = tensors
        self._left = dict.fromkeys(tensors)
        self._problems = problems
        self._reported: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def names(self) -> Sequence[str]:
        return list(self._tensors)

    def shape(self, name: str, rank: int) -> tuple[int, ...]:
        """The shape of a tensor that sizes are derived from; ones, with a problem, when it is absent or of another rank."""
        found = self._tensors.get(name)
        if found is not None and found.ndim == rank and found.size:
            return found.shape
        self._problems.append(Problem(name, f"a tensor with {rank} dimensions", "nothing" if found is None else str(list(found.shape))))
        self._left.pop(name, None)
        self._reported.add(name)
        return (1,) * rank

    def any_shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor that is there."""
        return self._tensors[name].shape

    def rows(self, name: str) -> int:
        """How many rows a matrix has, 0 when it is absent: of a layer that may have no heads."""
        found = self._tensors.get(name)
        return found.shape[0] if found is not None and found.ndim == 2 else 0

    def size(self, what: str, places: Iterable[tuple[str, int, int]]) -> int:
        """A size that several tensors show, as (name, rank, axis): what most of them say, so that one wrong tensor gives one problem."""
        present = [(self._tensors[name], rank, axis) for name, rank, axis in places if name in self._tensors]
        votes = Counter(found.shape[axis] for found, rank, axis in present if found.ndim == rank and found.shape[axis])
        if votes:
            return int(votes.most_common(1)[0][0])
        self._problems.append(Problem(what, "a tensor that shows it", "none"))
        return 1

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The tensor in the given shape; zeros of it, with a problem, when it is absent, misshapen, not floating-point or not finite."""
        self._left.pop(name, None)
        found = self._tensors.get(name)
        if self.sound(name):
            problem = _problem(name, shape, found)
            if problem is None and found is not None:
                return found
            self._problems.extend([problem] if problem else [])
            self._reported.add(name)
        return np.broadcast_to(np.float32(0), shape)  # costs nothing however large the wrong size is

    def sound(self, name: str) -> bool:
        """Whether no problem was found with a tensor yet; each is reported once, however often it is taken."""
        return name not in self._reported

    def optional(self, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
        """As take, or None when the source has no such tensor."""
        return self.take(name, shape) if name in self._tensors else None

    def ignore(self, name: str) -> None:
        """Mark a tensor that the engine does not need as seen."""
        self._left.pop(name, None)

    def ignore_outside(self, prefix: str) -> list[str]:
        """Mark every tensor not asked for whose name does not start with `prefix` as seen; their names, sorted."""
        outside = sorted(name for name in self._left if not name.startswith(prefix))
        for name in outside:
            self.ignore(name)
        return outside

    def count(self, prefix: str) -> int:
        """How many consecutive numbers from 0 follow a prefix: count('layers.') of layers.0.x, layers.1.y is 2."""
        numbers = {name[len(prefix) :].split(".")[0] for name in self._tensors if name.startswith(prefix)}
        index = 0
        while str(index) in numbers:
            index += 1
        return index

    def finish(self) -> None:
        """Add a problem for every tensor that was not asked for."""
        self._problems.extend(Problem(name, "no such tensor in this format", str(list(self._tensors[name].shape))) for name in self._left)


def _problem(name: str, shape: tuple[int, ...], found: np.ndarray | None) -> Problem | None:
    if found is None:
        return Problem(name, str(list(shape)), "nothing")
    if found.shape != shape:
        return Problem(name, str(list(shape)), str(list(found.shape)))
    if found.dtype.name not in FLOATS:
        return Problem(name, "float32, float64, float16 or bfloat16", found.dtype.name)
    place = _not_finite(found)
    return None if place is None else Problem(f"{name}{list(place)}", "a finite number", str(found[place]))


def _not_finite(array: np.ndarray) -> tuple[int, ...] | None:
    """Where the first NaN or infinity stands, or None."""
    with np.errstate(all="ignore"):
        total = array.sum(dtype=np.float64)  # finite only if every number is; no array of booleans for the usual case
        if np.isfinite(total):
            return None
        bad = np.argwhere(~np.isfinite(array))
    return tuple(int(i) for i in bad[0]) if len(bad) else None


class Settings:
    """Configuration values of a source with the user's options over them; options win, and a contradiction of the two is noted."""

    def __init__(self, config: Mapping[str, Any], options: Mapping[str, Any], problems: list[Problem], notes: list[str]) -> None:
        self._config = config
        self._options = options
        self._problems = problems
        self._notes = notes
        self.used: set[str] = set()

    def has(self, name: str) -> bool:
        return self._options.get(name) is not None or self._config.get(name) is not None

    def value(self, name: str) -> Any:
        """A setting of any type, or None."""
        return self._value(name, None, "")

    def problem(self, name: str, expected: str, found: str) -> None:
        """Add a problem of a setting that only the converter can judge."""
        self._problems.append(Problem(name, expected, found))

    def note(self, text: str) -> None:
        """Add a remark for the report."""
        self._notes.append(text)

    def integer(self, name: str, default: Any = REQUIRED, *, least: int = 0) -> int:
        value = self._value(name, default, "an integer")
        if isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**31:
            return value
        self._wrong(name, f"an integer of at least {least}", value)
        return least

    def number(self, name: str, default: Any = REQUIRED) -> float:
        """A finite number."""
        value = self._value(name, default, "a number")
        if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30:
            return float(value)
        self._wrong(name, "a number", value)
        return 0.0

    def boolean(self, name: str, default: Any = REQUIRED) -> bool:
        value = self._value(name, default, "true or false")
        if isinstance(value, bool):
            return value
        self._wrong(name, "true or false", value)
        return False

    def integers(self, name: str, default: Any = REQUIRED) -> list[int]:
        value = self._value(name, default, "a list of integers")
        if isinstance(value, (list, tuple)) and all(isinstance(v, int) and not isinstance(v, bool) for v in value):
            return list(value)
        self._wrong(name, "a list of integers", value)
        return []

    def agree(self, name: str, derived: Any, what: str) -> None:
        """A setting that the shapes already give: its presence is checked against them, its absence is fine."""
        self.used.add(name)
        for origin, values in (("option", self._options), ("config", self._config)):
            given = values.get(name)
            if given is not None and given != derived:
                self._problems.append(Problem(f"{origin} {name}", f"{derived} ({what})", repr(given)))

    def unknown_options(self, known: Sequence[str]) -> None:
        """Add a problem for every option this format does not have."""
        listed = ", ".join(sorted({*known, *COMMON_OPTIONS}))
        for name, value in self._options.items():
            if name not in known:
                self._problems.append(Problem(f"option {name}", f"one of {listed}", repr(value)[:60]))

    def _value(self, name: str, default: Any, expected: str) -> Any:
        self.used.add(name)
        option, config = self._options.get(name), self._config.get(name)
        if option is not None:
            if config is not None and config != option:
                self._notes.append(f"{name}: the option {option!r} replaces {config!r} of the configuration")
            return option
        if config is not None:
            return config
        if default is REQUIRED:
            self._problems.append(Problem(f"option {name}", expected, "nothing: neither the file nor its configuration gives it"))
            return None
        return default

    def _wrong(self, name: str, expected: str, value: Any) -> None:
        if value is not None:  # an absent value has its problem already
            self._problems.append(Problem(name, expected, repr(value)[:60]))


def refuse(problems: Sequence[Problem], converter: Converter, path: Path) -> None:
    """Raise ConversionError with all problems of a source, if there are any."""
    if problems:
        beside = " or ".join(converter.config_names)
        hint = (
            f"{converter.name} settings come from {beside} beside the file, from config=, or from options: {', '.join(converter.options)}"
        )
        raise ConversionError(problems, source=path.name, hint=hint)


@dataclass(frozen=True)
class Converted:
    """What a converter hands back: every head of the source, the heads its gates keep, scales on them, remarks.

    unread: keys of the configuration that are on no list of the format.  told: what its configuration left out and its tensors told.
    undecided: the problem of a file that has gates without saying which heads they keep; heads= says it.
    """

    checkpoint: Checkpoint  # unpruned: kept = all heads the source file holds
    kept: tuple[tuple[int, ...], ...]  # by the source's own gates; all of them without gates
    scales: tuple[tuple[float, ...], ...] | None = None  # per kept head
    notes: list[str] = field(default_factory=list)
    unread: Sequence[str] = ()
    told: Mapping[str, Any] = field(default_factory=dict)
    undecided: Problem | None = None


class Converter(ABC):
    """One source format; its module offers one as CONVERTER.

    config_names: file names of its configuration, looked for beside the checkpoint.  options: what `convert` may be given besides config
    and heads.
    """

    name: str
    config_names: tuple[str, ...]
    options: tuple[str, ...]

    @abstractmethod
    def recognises(self, names: Sequence[str]) -> bool:
        """Whether a state dict with these (stripped) tensor names is of this format."""

    @abstractmethod
    def read(self, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any], options: Mapping[str, Any], path: Path) -> Converted:
        """Convert; raises ConversionError with every problem of tensors, configuration and options together."""

    def require_config(self, config: Mapping[str, Any], source: str) -> None:  # noqa: B027 - most formats have nothing to say before
        """Raise ConversionError for a configuration that no tensors fit. Asked before they are read, where it tells the format."""

    def tokenizer(self, files: SideFiles, config: Mapping[str, Any], source: str, vocab: int, notes: list[str]) -> str | None:
        """The text of the tokenizer.json that the source comes with, or None. files: those beside it.  vocab: tokens of the model."""
        return read_tokenizer(files, config, vocab, source)

    def tokenizer_settings(self, files: SideFiles) -> Mapping[str, Any]:
        """What the files beside a source say of its tokenizer that a tokenizer.json has no place for; it goes into the provenance."""
        return {}
