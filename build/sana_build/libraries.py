"""Which engine libraries this machine has, and what to install or where to go for the others."""

import subprocess
from importlib.util import find_spec

from sana_build.gpus import Gpu, architectures
from sana_runtime.libraries import WHEELS

ON_CARD = {"tensorrt": "classic TensorRT", "torch": "the torch backend"}
"""Backends whose engines are compiled and measured on the card they are for."""

ARCHITECTURE_QUERY = ("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")


def obstacle(gpu: Gpu) -> str | None:
    """Why this machine cannot build engines for `gpu` and what to do about it, or None if it can.

    TensorRT-RTX builds for any card without one; ON_CARD lists what builds on the card that will run the engine.
    """
    if gpu.backend in WHEELS and find_spec(gpu.backend) is None:
        return f"{gpu.backend} is not installed: run `pip install {WHEELS[gpu.backend]}`{_where(gpu)}"
    if gpu.backend in ON_CARD and not set(architectures(gpu.cards)) <= local_architectures():
        return f"{ON_CARD[gpu.backend]} builds on the card itself and this machine has no {gpu.title}{_where(gpu)}"
    return None


def _where(gpu: Gpu) -> str:
    return f"; build on the machine with the {gpu.title}" if gpu.backend in ON_CARD else ""


def local_architectures() -> set[int]:
    """The SM numbers of this machine's cards, none where there is no driver."""
    try:
        answer = subprocess.run(ARCHITECTURE_QUERY, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return set()
    return {int(line.replace(".", "")) for line in answer.stdout.split() if line.replace(".", "").isdecimal()}
