"""Asynchronous iteration over something that blocks, such as a camera."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

END = StopAsyncIteration()
JOIN_SECONDS = 2.0


class Ahead(Generic[T]):
    """The items of a blocking iterator, made in a thread that is at most two items ahead of whoever waits for them.

    The thread is a daemon: an input that never speaks again cannot keep the process alive.
    """

    def __init__(self, items: Iterator[T]) -> None:
        self._loop = asyncio.get_running_loop()
        self._made: asyncio.Queue[T | BaseException] = asyncio.Queue()
        self._room = threading.Semaphore(1)
        self.stopped = False
        self._thread = threading.Thread(target=self._make, args=(items,), daemon=True)
        self._thread.start()

    def __aiter__(self) -> "Ahead[T]":
        return self

    async def __anext__(self) -> T:
        item = await self._made.get()
        self._room.release()
        if isinstance(item, BaseException):
            raise item
        return item

    def stop(self) -> None:
        """End the iteration after the items that are already there."""
        self.stopped = True
        self._room.release()
        self._made.put_nowait(END)

    async def join(self) -> bool:
        """Whether the thread has ended, and with it all use of the iterator."""
        self.stop()
        await asyncio.to_thread(self._thread.join, JOIN_SECONDS)
        return not self._thread.is_alive()

    def _make(self, items: Iterator[T]) -> None:
        try:
            for item in items:
                if self.stopped:
                    return
                self._give(item)
                self._room.acquire()
            self._give(END)
        except BaseException as error:
            # Whoever waits has to learn of it; in this thread it would only be printed.
            self._give(error)

    def _give(self, item: T | BaseException) -> None:
        if not self.stopped:
            self._loop.call_soon_threadsafe(self._made.put_nowait, item)
