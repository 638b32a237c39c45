"""Work that must not hold up the event loop, and work that must not be interrupted."""

import asyncio
import os
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")

COPIERS = min(4, os.cpu_count() or 1)
"""Threads that copy one chunk: memory is faster than one core, but hardly faster than four."""

_threads = ThreadPoolExecutor(COPIERS, "sana-copy")

INLINE_BYTES = 2**20
"""Copying less than this takes less time than going to a thread and back."""


async def off_loop(size: int, copy: Callable[[], T]) -> T:
    """The result of `copy`, which moves `size` bytes; it ends before a cancellation of the caller goes on."""
    return copy() if size < INLINE_BYTES else await uninterrupted(asyncio.to_thread(copy))


def copy_frames(target: np.ndarray, source: np.ndarray) -> None:
    """Copy frames (1, F, H, W, 3); large ones by several threads, as numpy holds no lock meanwhile."""
    if source.nbytes < INLINE_BYTES:
        return np.copyto(target, source)
    pieces = (np.array_split(frames, COPIERS, axis=1) for frames in (target, source))
    for _ in _threads.map(np.copyto, *pieces):
        pass


async def uninterrupted(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end even if the caller is cancelled meanwhile; the cancellation is raised afterwards."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
