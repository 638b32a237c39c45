"""The manifest of a built repository: what was built, from what, with which figures; and the check against it."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sana_runtime import __version__
from sana_runtime.errors import RepositoryError
from sana_runtime.geometry import StreamGeometry

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class EngineEntry:
    """One engine file of a stage: its tensors by name as "dtype[shape]", and how far it was from PyTorch at build.

    `error` is max|a-b|/max|b| per output.
    """

    path: str
    backend: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    error: dict[str, float]


@dataclass(frozen=True)
class Manifest:
    """Everything a server needs to know about a repository. `engines` maps stage -> variant -> entry."""

    model: str
    gpu: str
    policy: str
    checkpoint: str
    weights: str
    geometry: StreamGeometry
    steps: int
    streams: int
    idle_seconds: float
    engines: dict[str, dict[str, EngineEntry]]
    versions: dict[str, str]
    config: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    version: str = __version__
    format: int = FORMAT

    def write(self, repository: Path) -> None:
        (repository / MANIFEST).write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, repository: Path) -> "Manifest":
        """Read and validate; raises RepositoryError naming the file and what to do."""
        path = repository / MANIFEST
        try:
            raw = json.loads(path.read_text())
        except FileNotFoundError:
            raise RepositoryError(f"{repository} has no {MANIFEST}: build it with `sana-build --output`") from None
        except (OSError, ValueError) as error:
            raise RepositoryError(f"{path} cannot be read ({error}): build the repository again") from error
        if raw.get("format") != FORMAT or raw.get("version") != __version__:
            raise RepositoryError(
                f"{repository} was built by sana-build {raw.get('version', 'unknown')}, this is {__version__}: "
                f"build it again with this version"
            )
        return cls._from_json(raw, path)

    @classmethod
    def _from_json(cls, raw: dict[str, Any], path: Path) -> "Manifest":
        try:
            engines = {
                stage: {name: EngineEntry(**entry) for name, entry in variants.items()}
                for stage, variants in raw["engines"].items()
            }
            return cls(**{**raw, "geometry": StreamGeometry(**raw["geometry"]), "engines": engines})
        except (KeyError, TypeError, AttributeError) as error:
            raise RepositoryError(f"{path} does not have the expected fields ({error}): build it again") from error

    def check_files(self, repository: Path, below: str = "") -> None:
        """Compare the hash of every file under `below`; raises RepositoryError for the first that differs."""
        for name, digest in self.files.items():
            if name.startswith(below):
                check_file(repository / name, digest)


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_file(path: Path, digest: str) -> None:
    """Raise RepositoryError unless the file at `path` exists and has this SHA-256."""
    if not path.is_file():
        raise RepositoryError(f"{path} is missing from the repository: build it again")
    if sha256(path) != digest:
        raise RepositoryError(f"{path} was changed after the build (hash mismatch): build the repository again")
