"""Who gets one of the model's slots: first come, first served, a short line, and an honest answer when it is full."""

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from sana_client.gateway.refusals import Full, OverLimit

OnAhead = Callable[[int], None]


def _ignore(ahead: int) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True, eq=False)
class _Waiting:
    """One in the line."""

    owner: str
    on_ahead: OnAhead
    admitted: asyncio.Future[None]


@dataclass
class Admission:
    """Slots of the served model. `line` bounds how many may wait; `owner` is the name of a token."""

    capacity: int
    line: int
    _taken: Counter[str] = field(default_factory=Counter)
    _waiting: deque[_Waiting] = field(default_factory=deque)

    @property
    def active(self) -> int:
        return self._taken.total()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def enter(self, owner: str, limit: int, seconds: float | None, on_ahead: OnAhead = _ignore) -> None:
        """Take a slot, waiting in line for at most `seconds` (None: as long as it takes).

        `on_ahead` learns how many are ahead whenever that changes. Raises OverLimit when `owner` has `limit` slots or
        places in line already, and Full when the time is up or the line is full.
        """
        held = self._taken[owner] + sum(waiting.owner == owner for waiting in self._waiting)
        if held >= limit:
            raise OverLimit(f"{held} streams are open with this token, and {limit} are allowed: close one first")
        if self.active < self.capacity and not self._waiting:
            self._taken[owner] += 1
            return
        if len(self._waiting) >= self.line:
            raise self._full(len(self._waiting))
        await self._stand_in_line(owner, seconds, on_ahead)

    def leave(self, owner: str) -> None:
        """Give a slot back; the first in line has it at once."""
        self._taken[owner] -= 1
        # A Counter keeps names at zero, and names of clients can be many.
        self._taken += Counter()
        self._admit()

    def resize(self, capacity: int) -> None:
        """The server came back with another number of slots."""
        self.capacity = capacity
        self._admit()

    async def _stand_in_line(self, owner: str, seconds: float | None, on_ahead: OnAhead) -> None:
        place = _Waiting(owner, on_ahead, asyncio.get_running_loop().create_future())
        self._waiting.append(place)
        on_ahead(len(self._waiting) - 1)
        try:
            await asyncio.wait_for(asyncio.shield(place.admitted), seconds)
        except TimeoutError:
            if place.admitted.done():
                return
            raise self._full(self._waiting.index(place)) from None
        except asyncio.CancelledError:
            if place.admitted.done():
                self.leave(owner)
            raise
        finally:
            if place in self._waiting:
                self._waiting.remove(place)
                self._tell()

    def _admit(self) -> None:
        while self._waiting and self.active < self.capacity:
            place = self._waiting.popleft()
            self._taken[place.owner] += 1
            place.admitted.set_result(None)
        self._tell()

    def _tell(self) -> None:
        for ahead, place in enumerate(self._waiting):
            place.on_ahead(ahead)

    def _full(self, ahead: int) -> Full:
        return Full(
            f"all {self.capacity} streams are taken, {ahead} ahead of you: try again later, or wait in line", ahead
        )
