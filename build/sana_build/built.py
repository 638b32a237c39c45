"""What a build has made so far: engines with their entries in the manifest, and the cost of every step."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sana_build.precision import GroupRow
from sana_runtime.manifest import EngineEntry

if TYPE_CHECKING:
    from rich.table import Table

    from sana_quant.calibration import Calibration


@dataclass(frozen=True)
class BuiltEngine:
    """One engine of a repository, with the seconds it took to build; `reused` if a build before had made it.

    `rows` is the precision check of its layers, and `sha256` the hash of its file where that is already known.
    """

    stage: str
    variant: str
    entry: EngineEntry
    seconds: float
    rows: tuple[GroupRow, ...] = ()
    reused: bool = False
    sha256: str = ""


@dataclass(frozen=True)
class Step:
    """One step that ran in a process of its own: its seconds, and the most memory it held, in bytes."""

    name: str
    seconds: float
    peak: int


@dataclass(frozen=True)
class Built:
    """All engines of a build, the steps that ran for them, the libraries and the calibration they were built with.

    `packages` of ours have to be in the repository beside the runtime.
    """

    engines: list[BuiltEngine]
    steps: list[Step] = field(default_factory=list)
    libraries: dict[str, str] = field(default_factory=dict)
    calibration: "Calibration | None" = None
    packages: tuple[str, ...] = ()


def summary(engines: Iterable[BuiltEngine]) -> "Table":
    """The engines for a person."""
    from rich.table import Table

    head = ("stage", "engine", "runs", "MB", "seconds", "kernels", "GEMMs", "worst error against PyTorch")
    table = Table(*head, title="engines", box=None)
    for engine in engines:
        entry = engine.entry
        seconds = "reused" if engine.reused else f"{engine.seconds:.1f}"
        name = entry.path.rsplit("/", 1)[-1]
        kernels = (
            str(entry.kernels or "-"),
            ", ".join(f"{count} {precision}" for precision, count in entry.gemms.items()) or "-",
        )
        table.add_row(engine.stage, name, entry.policy, f"{entry.bytes / 1e6:.1f}", seconds, *kernels, _error(entry))
    return table


def _error(entry: EngineEntry) -> str:
    if not entry.error:
        return entry.unmeasured
    name, error = max(entry.error.items(), key=lambda item: item[1])
    return f"{error:.1e}  {name}"


def denoiser_rows(engines: Iterable[BuiltEngine]) -> dict[str, list[GroupRow]]:
    """The precision check of the denoiser's layers by policy: every layer once, although two engines hold most."""
    tables: dict[str, list[GroupRow]] = {}
    for engine in engines:
        if engine.rows and engine.variant != "first":
            tables.setdefault(engine.entry.policy, []).extend(engine.rows)
    return tables


def costs(steps: Iterable[Step]) -> "Table":
    """The steps for a person."""
    from rich.table import Table

    table = Table("step", "seconds", "peak GB", title="steps")
    for step in steps:
        table.add_row(step.name, f"{step.seconds:.1f}", f"{step.peak / 1e9:.1f}")
    return table
