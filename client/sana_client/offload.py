"""Work that must not hold up the event loop, and work that must not be interrupted."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

INLINE_BYTES = 2**20
"""Copying less than this takes less time than going to a thread and back."""


async def off_loop(size: int, copy: Callable[[], T]) -> T:
    """The result of `copy`, which moves `size` bytes; it ends before a cancellation of the caller goes on."""
    return copy() if size < INLINE_BYTES else await uninterrupted(asyncio.to_thread(copy))


async def uninterrupted(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end even if the caller is cancelled meanwhile; the cancellation is raised afterwards."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
