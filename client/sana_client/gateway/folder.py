"""The gateway's folder for uploads and results: gone with the gateway, however that ends."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PREFIX = "sana-gateway-"
JANITOR = 'cat > /dev/null; rm -rf -- "$1"'
"""Waits until nobody holds the other end of its input any more."""


@dataclass(frozen=True)
class OwnFolder:
    """A folder that lasts as long as any process holds `keeper`, a file descriptor."""

    path: Path
    keeper: int


@contextmanager
def own_folder() -> Iterator[OwnFolder]:
    """A new folder until the block, and every process that inherited its keeper, has ended."""
    root = Path(tempfile.gettempdir())
    _remove_stale(root)
    path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=root))
    reading, keeper = os.pipe()
    # In a session of its own a Ctrl-C at the terminal does not reach it.
    janitor = subprocess.Popen(["sh", "-c", JANITOR, "sh", path], stdin=reading, start_new_session=True)
    os.close(reading)
    try:
        yield OwnFolder(path, keeper)
    finally:
        os.close(keeper)
        janitor.wait()


def _remove_stale(root: Path) -> None:
    """Remove folders whose janitor was killed as well."""
    me = pwd.getpwuid(os.getuid()).pw_name
    for stale in root.glob(f"{PREFIX}*"):
        owner = stale.name.removeprefix(PREFIX).partition("-")[0]
        if stale.owner() == me and owner.isdecimal() and not Path("/proc", owner).exists():
            shutil.rmtree(stale, ignore_errors=True)
