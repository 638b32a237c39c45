"""Folders that one process at a time writes to, and that appear under their final name only when they are complete."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sana_runtime.errors import ConfigError


@contextmanager
def under_construction(final: Path) -> Iterator[Path]:
    """An empty folder beside `final` that replaces it if the block succeeds, and disappears if it does not.

    It is locked as long as the process lives: what a killed build left behind is cleared, and another build into the
    same place is refused with a ConfigError.
    """
    folder = final.absolute().with_name(f".{final.name}.partial")
    handle = _lock(folder, final)
    try:
        for left in folder.iterdir():
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        yield folder
        if final.exists():
            shutil.rmtree(final)
        folder.rename(final)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _lock(folder: Path, final: Path) -> int:
    """Make and lock the folder; the handle, once closed or lost with the process, is the lock's end."""
    while True:
        handle = _open(folder, final)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise ConfigError(f"another build is writing {final}: wait for it, or name another folder") from None
        # The owner before us may have moved the folder to its final name, or removed it, since we opened it.
        if folder.exists() and folder.stat().st_ino == os.fstat(handle).st_ino:
            return handle
        os.close(handle)


@contextmanager
def alone_in(folder: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold `folder` for this process while the block runs; `waiting` is called if another process holds it now.

    Raises ConfigError if the folder cannot be made.
    """
    handle = _open(folder, folder)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _open(folder: Path, final: Path) -> int:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ConfigError(f"{final} cannot be written ({error.strerror}): name another folder") from error
