"""What several benchmarks say about a run: the commit it is of, and how near two videos are."""

import subprocess
from pathlib import Path

import numpy as np


def commit() -> str:
    """The commit of this checkout, marked if files differ from it; `unknown` outside of one."""
    command = ["git", "describe", "--always", "--dirty"]
    found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def psnr(shown: np.ndarray, truth: np.ndarray) -> float:
    """Decibels between uint8 videos."""
    error = np.mean((shown.astype(np.float32) - truth.astype(np.float32)) ** 2) / 255**2
    return float(-10 * np.log10(max(float(error), 1e-10)))
