"""The manifest of a built repository: what was built, from what, with which figures; and the check against it."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sana_runtime import __version__
from sana_runtime.errors import RepositoryError
from sana_runtime.geometry import StreamGeometry

MANIFEST = "manifest.json"
FORMAT = 2


@dataclass(frozen=True)
class EngineEntry:
    """One engine file of a stage: its tensors by name as "dtype[shape]", and how far it was from PyTorch at build.

    `error` is max|a-b|/max|b| per output, or, of an engine for a card that is not here, of its graph or of the named
    blocks of it on a CPU; of the torch backend it is the relative RMS error of a short stream on the card itself.
    `unmeasured` says what no figure covers. `sms` are the GPU architectures that the engine is for, none for a CPU.
    Where the builder says so, `kernels` counts its layers, `gemms` its matrix products by precision, and `groups` is
    the precision check, one row per group and precision.
    """

    path: str
    backend: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    error: dict[str, float]
    unmeasured: str = ""
    policy: str = ""
    sms: list[int] = field(default_factory=list)
    bytes: int = 0
    kernels: int = 0
    gemms: dict[str, int] = field(default_factory=dict)
    groups: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Manifest:
    """Everything a server needs to know about a repository.

    `engines` maps stage -> variant -> the engines there are for it, one per policy that the cards of a family need.
    """

    model: str
    gpu: str
    policy: str
    checkpoint: str
    weights: str
    geometry: StreamGeometry
    steps: int
    streams: int
    idle_seconds: float
    engines: dict[str, dict[str, list[EngineEntry]]]
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
                f"{repository} was built by sana-build {raw.get('version', 'unknown')} (manifest format "
                f"{raw.get('format', 'unknown')}), this is {__version__} (format {FORMAT}): "
                f"build it again with this version"
            )
        return cls._from_json(raw, path)

    @classmethod
    def _from_json(cls, raw: dict[str, Any], path: Path) -> "Manifest":
        try:
            engines = {
                stage: {name: [EngineEntry(**entry) for entry in entries] for name, entries in variants.items()}
                for stage, variants in raw["engines"].items()
            }
            return cls(**{**raw, "geometry": StreamGeometry(**raw["geometry"]), "engines": engines})
        except (KeyError, TypeError, AttributeError) as error:
            raise RepositoryError(f"{path} does not have the expected fields ({error}): build it again") from error

    def every_engine(self) -> Iterator[tuple[str, str, EngineEntry]]:
        """(stage, variant, entry) of all engines."""
        for stage, variants in self.engines.items():
            for variant, entries in variants.items():
                yield from ((stage, variant, entry) for entry in entries)

    @property
    def for_gpu(self) -> bool:
        """Whether any engine is for a GPU."""
        return any(entry.sms for _, _, entry in self.every_engine())

    def pick(self, stage: str, sm: int | None) -> dict[str, EngineEntry]:
        """The engine of every variant of a stage for a card of architecture `sm`, or for the CPU where it is None.

        Raises RepositoryError naming the architectures there are engines for.
        """
        if stage not in self.engines:
            raise RepositoryError(f"the manifest lists no engine for {stage}: build the repository again")
        picked = {}
        for variant, entries in self.engines[stage].items():
            fitting = [entry for entry in entries if not entry.sms or sm in entry.sms]
            if not fitting:
                known = ", ".join(f"SM{known}" for known in sorted({known for entry in entries for known in entry.sms}))
                card = f"this card is SM{sm}" if sm else "this machine has no usable GPU"
                raise RepositoryError(
                    f"{stage}/{variant} was built for {known} (--gpu {self.gpu}) and {card}: "
                    f"build it again with --gpu for this card"
                )
            picked[variant] = fitting[0]
        return picked

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
