"""Whether the disks have room for a build, before hours of work end in a full one."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from sana_build.sizes import engine_bytes
from sana_runtime.errors import ConfigError

if TYPE_CHECKING:
    from sana_build.engine_jobs import EngineJob
    from sana_build.plan import Plan

SLACK = 1.1
"""Graphs and constants beside the weights."""


def check_space(plan: "Plan", every: Iterable["EngineJob"], missing: Iterable["EngineJob"]) -> None:
    """Raise ConfigError naming the folder that has no room: the cache for what is missing, the output for a copy."""
    cached = _needed(plan, missing)
    _check("--cache", plan.cache, sum(cached.values()) + max(cached.values(), default=0.0))
    if _device(plan.cache) != _device(plan.output):
        # Files on one disk are linked, and take no room twice.
        _check("--output", plan.output, sum(_needed(plan, every).values()))


def _needed(plan: "Plan", jobs: Iterable["EngineJob"]) -> dict[str, float]:
    """Bytes of the engines by stage, and so of the graphs they are built from, which exist one stage at a time."""
    needed: dict[str, float] = {}
    for job in jobs:
        size = SLACK * engine_bytes(plan.model, job.policy)[job.stage, job.variant]
        needed[job.stage] = needed.get(job.stage, 0.0) + size
    return needed


def _check(option: str, folder: Path, needed: float) -> None:
    free = shutil.disk_usage(_existing(folder)).free
    if free < needed:
        raise ConfigError(
            f"{option} {folder} needs room for about {_size(needed)} and its disk has {_size(free)}: "
            f"free some, or name a folder on another disk"
        )


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _device(folder: Path) -> int:
    return _existing(folder).stat().st_dev


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())
