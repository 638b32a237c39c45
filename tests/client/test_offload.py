"""Copies beside the event loop: where they run, and that nobody leaves before they have ended."""

import asyncio
import threading
import time

import numpy as np
import pytest

from sana_client.offload import INLINE_BYTES, copy_frames, off_loop


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


@pytest.mark.parametrize("frames", [1, 3, 33])
@pytest.mark.parametrize("size", [(4, 8), (352, 640)])
def test_frames_are_copied_whole_by_any_number_of_threads(frames: int, size: tuple[int, int]) -> None:
    every_second = np.random.default_rng(0).integers(0, 256, (1, 2 * frames, *size, 3), np.uint8)[:, ::2]
    target = np.zeros_like(every_second)
    copy_frames(target, every_second)
    np.testing.assert_array_equal(target, every_second)


def test_what_does_not_fit_is_not_copied() -> None:
    with pytest.raises(ValueError, match="could not broadcast"):
        copy_frames(np.zeros((1, 33, 256, 256, 3), np.uint8), np.zeros((1, 33, 256, 128, 3), np.uint8))
