"""Waiting for a condition that several parts of a session change."""

import asyncio
from collections.abc import Callable


class Signal:
    """Wakes whoever waits, to look at their condition again."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    async def until(self, condition: Callable[[], object]) -> None:
        """Return as soon as `condition` holds."""
        while not condition():
            waiting = asyncio.get_running_loop().create_future()
            self._waiting.add(waiting)
            try:
                await waiting
            finally:
                self._waiting.discard(waiting)
