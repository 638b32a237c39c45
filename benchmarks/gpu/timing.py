"""How long work on the GPU takes."""

from collections.abc import Callable
from statistics import median

import torch


def milliseconds(function: Callable[[], object], rounds: int = 12) -> float:
    """Median time on the GPU, after two rounds to warm up."""
    for _ in range(2):
        function()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(rounds)]
    for start, stop in events:
        start.record()
        function()
        stop.record()
    torch.cuda.synchronize()
    return median(start.elapsed_time(stop) for start, stop in events)
