"""Turns on a GPU: one process at a time computes on it, as the driver would share it in slices of time (ADR 12)."""

import fcntl
import os
import tempfile
import warnings
from pathlib import Path
from typing import Protocol


class Turn(Protocol):
    """One process's right to compute, which it may ask for again while it has it."""

    def take(self) -> None:
        """Wait until no other process has it."""
        ...

    def give(self) -> None:
        """Let the next process compute, if this one has the turn."""
        ...


class NoTurn:
    """Everybody computes at any time."""

    def take(self) -> None:
        return

    def give(self) -> None:
        return


class FileTurn:
    """A lock on a file. The kernel takes it back from a process that ends in whatever way."""

    def __init__(self, path: Path) -> None:
        """Raises OSError if there can be no such file."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._taken = False

    def take(self) -> None:
        if not self._taken:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            self._taken = True

    def give(self) -> None:
        if self._taken:
            fcntl.flock(self._file, fcntl.LOCK_UN)
            self._taken = False


def turn_on(card: str) -> Turn:
    """The turn that all of this user's processes on the host share for one card, which `card` names."""
    # Not in the cache folder: home is on a network where machines are many, and locks are slow there.
    path = Path(tempfile.gettempdir()) / f"sana-turn-{os.getuid()}-{card}"
    try:
        return FileTurn(path)
    except OSError as error:
        warnings.warn(
            f"{path} cannot be opened ({error.strerror}), so stages do not take turns on the GPU and get in each "
            f"other's way: set TMPDIR to a folder that this user can write to",
            stacklevel=2,
        )
        return NoTurn()
