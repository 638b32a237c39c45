"""`sana-build doctor`: what this machine can build and serve, and what to do about the rest."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from sana_build.bundle import SERVER_VERSION, find_bundle
from sana_build.server import SHARED_MEMORY
from sana_runtime.errors import ConfigError
from sana_runtime.libraries import WHEELS

if TYPE_CHECKING:
    from rich.console import Console

CHI_DIFFUSERS = "0.42.1"
OLDEST_PYTHON = (3, 11)
MIN_SHARED_MEMORY = 2**30
MIN_DISK = 20 * 2**30
GPU_QUERY = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")


@dataclass(frozen=True)
class Finding:
    """One part of the machine: what is there, whether that is enough, and what to do if it is not."""

    part: str
    needed_for: str
    found: str
    ok: bool
    remedy: str = ""


def inspect() -> list[Finding]:
    """Look at everything a build or a server needs; a missing part is a finding, never an error."""
    packages = [_package(*row) for row in PACKAGES]
    return [_python(), *packages, _chi_prompt(), _server(), _shared_memory(), _disk(), _gpu()]


def render(findings: list[Finding], console: "Console") -> None:
    """Print the findings as a table, then what to do about each missing part."""
    from rich.table import Table

    table = Table("part", "needed to", "found", "status", title="this machine")
    for finding in findings:
        status = "[green]ok[/]" if finding.ok else "[yellow]missing[/]"
        table.add_row(finding.part, finding.needed_for, finding.found, status)
    console.print(table)
    for finding in findings:
        if not finding.ok:
            console.print(f"[bold]{finding.part}[/] ({finding.needed_for}): {finding.remedy}")


COMPILE = "run `pip install 'sana-build[compile]'`"
SERVE = "run `pip install 'sana-build[serve]'`"
PACKAGES = (
    ("torch", "build", COMPILE),
    ("onnx", "build", COMPILE),
    ("transformers", "build", COMPILE),
    ("onnxruntime", "build, serve", SERVE),
    ("tokenizers", "serve", SERVE),
    ("psutil", "serve", SERVE),
    (WHEELS["tensorrt_rtx"], "RTX engines", "run `pip install 'sana-build[rtx]'`; it builds without a card"),
    (WHEELS["tensorrt"], "H100 to B200 engines", "run `pip install tensorrt_cu13` on the machine with the card"),
)


def _package(name: str, needed_for: str, remedy: str) -> Finding:
    try:
        return Finding(name, needed_for, version(name), True)
    except PackageNotFoundError:
        return Finding(name, needed_for, "not installed", False, remedy)


def _python() -> Finding:
    oldest = ".".join(map(str, OLDEST_PYTHON))
    ok = sys.version_info >= OLDEST_PYTHON
    return Finding("python", "build, serve", sys.version.split()[0], ok, f"use Python {oldest} or newer")


def _chi_prompt() -> Finding:
    """The build reads the chi text from diffusers and checks its hash; this version is known to pass."""
    found = _package("diffusers", "build", COMPILE)
    remedy = f"install diffusers {CHI_DIFFUSERS}: the build refuses another one if its chi text differs"
    return found if not found.ok or found.found == CHI_DIFFUSERS else replace(found, ok=False, remedy=remedy)


def _server() -> Finding:
    try:
        found = f"{SERVER_VERSION}, stub for Python {find_bundle().stub.parent.name}"
        return Finding("triton server", "serve", found, True)
    except ConfigError as error:
        return Finding("triton server", "serve", "not usable", False, str(error))


def _shared_memory() -> Finding:
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else 0
    remedy = "every model process keeps its tensors there: start the container with --shm-size=2g or more"
    return Finding("shared memory", "serve", f"{free / 2**30:.1f} GiB free", free >= MIN_SHARED_MEMORY, remedy)


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    remedy = f"free {MIN_DISK / 2**30:.0f} GiB here, or build on another disk; the tiny model needs far less"
    return Finding("disk", "build", f"{free / 2**30:.0f} GiB free, {os.cpu_count()} CPUs", free >= MIN_DISK, remedy)


def _gpu() -> Finding:
    part, needed_for, remedy = (
        "gpu",
        "GPU serving",
        "nothing to do to build, or for --gpu cpu; to serve on a card install its driver",
    )
    try:
        answer = subprocess.run(GPU_QUERY, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return Finding(part, needed_for, "no nvidia-smi", False, remedy)
    found = "; ".join(answer.stdout.split("\n")).strip("; ")
    return Finding(part, needed_for, found or "none", answer.returncode == 0 and bool(found), remedy)
