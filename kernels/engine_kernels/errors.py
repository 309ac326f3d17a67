"""The one error a kernel raises."""

from __future__ import annotations


class KernelError(ValueError):
    """An argument a kernel cannot take: which one, what was expected, what was got."""

    def __init__(self, argument: str, expected: str, got: str) -> None:
        super().__init__(argument, expected, got)
        self.argument = argument
        self.expected = expected
        self.got = got

    def __str__(self) -> str:
        return f"{self.argument}: expected {self.expected}, got {self.got}"
