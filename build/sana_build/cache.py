"""What a build made before: folders by the hash of everything that went into them, so that nothing is made twice."""

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sana_build.folders import under_construction


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/sana-build`, which is `~/.cache/sana-build` where that is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sana-build"


@dataclass(frozen=True)
class Cache:
    """Complete folders below `root`, by kind and key. Removing any of them, or all, costs time and nothing else."""

    root: Path

    def folder(self, kind: str, key: str) -> Path:
        """Where the entry is, once it is made."""
        return self.root / kind / key

    def find(self, kind: str, key: str) -> Path | None:
        folder = self.folder(kind, key)
        return folder if folder.is_dir() else None

    @contextmanager
    def make(self, kind: str, key: str) -> Iterator[Path]:
        """An empty folder that becomes the entry if the block succeeds."""
        with under_construction(self.folder(kind, key)) as folder:
            yield folder

    def drop(self, kind: str, key: str) -> None:
        shutil.rmtree(self.folder(kind, key), ignore_errors=True)

    def keep_only(self, kind: str, keys: Collection[str]) -> None:
        """Drop all entries of a kind but these, and what killed builds left of it."""
        for folder in (self.root / kind).glob("*"):
            if folder.name not in keys:
                shutil.rmtree(folder)

    def log(self, name: str) -> Path:
        """Where the output of a step goes; the last one of each name is kept."""
        path = self.root / "logs" / f"{name.replace('/', '-')}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        return path


def make_key(**parts: Any) -> str:
    """A hash over named JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


@cache
def source_hash(module: str) -> str:
    """A hash over the source of a package or module, so that a changed program makes its own entries."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    origin = Path(spec.origin)
    digest = hashlib.sha256()
    for path in sorted(origin.parent.rglob("*.py")) if spec.submodule_search_locations else [origin]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def place(source: Path, target: Path) -> None:
    """Put a file at `target` as a hard link where the file system allows it, as a copy otherwise."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
