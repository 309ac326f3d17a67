"""A directory or a file that appears whole or not at all: written beside its destination, then renamed."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def new_directory(destination: Path) -> Iterator[Path]:
    """Give a temporary sibling to fill; on success it takes the destination's place, on any failure nothing is left of it.

    A directory that stands at the destination is replaced; whether it may be is the caller's decision. Siblings that a killed process left
    are removed. Raises OSError.
    """
    destination = Path(os.path.realpath(destination))  # the target of a link is replaced, the link stays
    made = _make_parents(destination.parent)
    try:
        _remove_left_overs(destination, "new")
        temporary = _sibling(destination, "new")
        os.mkdir(temporary)
        try:
            lock = _lock(temporary)
            try:
                yield temporary
                _sync(temporary)
                _install(temporary, destination)
            finally:
                os.close(lock)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except BaseException:
        for parent in made:  # innermost first
            with suppress(OSError):
                parent.rmdir()
        raise
    with suppress(OSError):  # the new directory stands; a failure from here on is not a failure to save
        _sync(destination.parent)
        _remove_left_overs(destination, "old")


def new_file(destination: Path, data: bytes) -> None:
    """As replace_file; its folder is made where there is none. Raises OSError."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    replace_file(destination, data)


def replace_file(destination: Path, data: bytes) -> None:
    """Write a file, in the place of one that stands there. Raises OSError."""
    temporary = _sibling(destination, "new")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, destination)
    finally:
        temporary.unlink(missing_ok=True)


def _install(temporary: Path, destination: Path) -> None:
    if not destination.exists():
        os.replace(temporary, destination)
        return
    retired = _sibling(destination, "old")  # a directory with files in it cannot be renamed over
    try:
        os.replace(destination, retired)
        os.replace(temporary, destination)
    except BaseException:
        if retired.exists() and not destination.exists():
            os.replace(retired, destination)
        raise


def _sibling(destination: Path, state: str) -> Path:
    return destination.with_name(f".{destination.name}.headcount-{state}-{secrets.token_hex(4)}")


def _remove_left_overs(destination: Path, state: str) -> None:
    prefix = f".{destination.name}.headcount-{state}-"
    for path in destination.parent.iterdir():
        if path.name.startswith(prefix) and path.is_dir() and not _is_locked(path):
            shutil.rmtree(path, ignore_errors=True)


def _lock(directory: Path) -> int:
    """A lock that ends with this process, so that others know the directory is in use."""
    descriptor = os.open(directory, os.O_RDONLY)
    with suppress(OSError):  # some network file systems have no locks
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def _is_locked(directory: Path) -> bool:
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _make_parents(parent: Path) -> list[Path]:
    """Make what is missing; returns the directories made, innermost first."""
    missing = []
    while not parent.exists():
        missing.append(parent)
        parent = parent.parent
    for path in reversed(missing):
        os.mkdir(path)
    return missing


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
