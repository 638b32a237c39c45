"""How much memory of the GPU a stream takes."""

from collections.abc import Callable

import torch

from sana_gpu.graphs import anchor


def peak(function: Callable[[], object]) -> float:
    """Gigabytes while `function` runs, whose graphs are all captured by then: tensors, and the room that graphs keep.

    What a graph computes with is nobody's tensor when it is replayed, and not counted where tensors are. What is tried
    out once before a capture is left out.
    """
    function()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    function()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() + kept_by_graphs()) / 1e9


def give_back() -> None:
    """Let go of pools whose graphs are all gone, with what they keep; later graphs begin another."""
    anchor.cache_clear()
    torch.cuda.empty_cache()


def kept_by_graphs() -> int:
    """Bytes in the pools of graphs that no tensor lives in."""
    segments = (each for each in torch.cuda.memory_snapshot() if tuple(each["segment_pool_id"]) != (0, 0))
    return sum(each["total_size"] - each["allocated_size"] for each in segments)
