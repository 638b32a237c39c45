"""Copies beside the event loop: where they run, and that nobody leaves before they have ended."""

import asyncio
import threading
import time

import pytest

from sana_client.offload import INLINE_BYTES, off_loop


async def test_small_copies_stay_and_large_ones_go_to_a_thread() -> None:
    assert await off_loop(INLINE_BYTES - 1, threading.get_ident) == threading.get_ident()
    assert await off_loop(INLINE_BYTES, threading.get_ident) != threading.get_ident()


async def test_a_cancelled_caller_waits_for_the_copy() -> None:
    ended = threading.Event()

    def copy() -> None:
        time.sleep(0.2)
        ended.set()

    caller = asyncio.create_task(off_loop(INLINE_BYTES, copy))
    await asyncio.sleep(0.05)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert ended.is_set()
