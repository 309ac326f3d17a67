"""The errors Headcount raises: where, what was expected, what was found, then the file, then what to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: the place, what was expected there and what stands there."""

    where: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.where}: expected {self.expected}, found {self.found}"


class EngineError(Exception):
    """Base of every error a user of Headcount can meet; carries all problems of one input together."""

    def __init__(
        self,
        problems: Problem | str | Iterable[Problem | str],
        *,
        source: str | None = None,
        hint: str | None = None,
    ) -> None:
        if isinstance(problems, (Problem, str)):
            problems = (problems,)
        self.problems: tuple[Problem | str, ...] = tuple(problems)
        self.source = source
        self.hint = hint
        lines = [str(problem) for problem in self.problems]
        if source is not None:
            lines.append(f"  in {source}")
        if hint is not None:
            lines.append(f"  {hint}")
        super().__init__("\n".join(lines))


class SpecMismatch(EngineError):
    """A spec contradicts itself, or the tensors of a checkpoint are not the ones its spec declares."""


class CheckpointError(EngineError):
    """A file or directory cannot be read or written as a checkpoint."""


class ConversionError(EngineError):
    """A source checkpoint cannot be converted: a missing option, a contradiction, an unknown tensor."""


class Unsupported(EngineError):
    """A variant the types can say and nothing implements yet."""


class BackendUnavailable(EngineError):
    """The backend, device or dtype the user named cannot run here."""


class InputError(EngineError, ValueError):
    """An argument of a public call is wrong: ids, prompt, sampling options."""
