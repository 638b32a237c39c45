"""How long work on the GPU takes."""

from collections.abc import Callable
from statistics import median

import torch

ROUNDS = 12


def milliseconds(function: Callable[[], object], rounds: int | None = None) -> float:
    """Median time on the GPU of ROUNDS rounds, or fewer of long work, after two to warm up."""
    for _ in range(2):
        function()
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(rounds or ROUNDS)]
    for start, stop in pairs:
        start.record()
        function()
        stop.record()
    torch.cuda.synchronize()
    return median(start.elapsed_time(stop) for start, stop in pairs)
