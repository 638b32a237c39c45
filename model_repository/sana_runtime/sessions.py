"""The streams a stage holds: state by correlation id, one owner per stream, and the order of its chunks (ADR 1)."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from sana_runtime.errors import RequestError, SequenceError

S = TypeVar("S")


@dataclass
class Session(Generic[S]):
    """One live stream: what it carries, the index its next chunk must have, and why it broke if it did."""

    correlation: str
    state: S | None = None
    chunk: int = 0
    used: float = 0.0
    broken: str = ""

    def require(self, index: object) -> None:
        """Raise SequenceError unless `index` is the one that is due."""
        if self.broken:
            raise SequenceError(
                f"stream {self.correlation} broke at chunk {self.chunk} ({self.broken}): begin it again with START"
            )
        if type(index) is not int:
            raise SequenceError(
                f"stream {self.correlation} needs the integer request parameter `chunk`, got {index!r}: "
                f"number the chunks from 0"
            )
        if index != self.chunk:
            raise SequenceError(
                f"stream {self.correlation} expected chunk {self.chunk} and got chunk {index}: "
                f"a chunk was lost or repeated, begin the stream again with START"
            )


class SessionTable(Generic[S]):
    """At most `capacity` streams; the least recently used one makes room, and one idle for `idle_seconds` is dropped.

    The server never reports a lost client or an idle timeout to a model, so the table has to notice both by itself.
    """

    def __init__(self, capacity: int, idle_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.capacity, self.idle_seconds, self._clock = capacity, idle_seconds, clock
        self._sessions: dict[str, Session[S]] = {}  # least recently used first
        self.started = self.evicted = self.broken = 0

    @property
    def live(self) -> int:
        return len(self._sessions)

    @contextmanager
    def step(self, correlation: int | str, index: object, *, start: bool, end: bool) -> Iterator[Session[S]]:
        """Lend the stream's session for chunk `index`; assign its `state` as the last thing in the block.

        START creates the stream afresh, END frees it whatever happens. A RequestError leaves the stream as it was; any
        other failure breaks it. Raises SequenceError for an unknown or broken stream and for an index that is not due.
        """
        key = str(correlation)
        self._evict_idle()
        try:
            session = self._create(key) if start else self._find(key)
            session.require(index)
            with self._breaking(session):
                yield session
            session.chunk += 1
            session.used = self._clock()
        finally:
            if end:
                self.drop(key)

    def drop(self, correlation: int | str) -> None:
        """Free the stream if it is there."""
        self._sessions.pop(str(correlation), None)

    def _create(self, key: str) -> Session[S]:
        self.drop(key)
        while self.live >= self.capacity:
            self._evict(next(iter(self._sessions)))
        self.started += 1
        self._sessions[key] = Session(key, used=self._clock())
        return self._sessions[key]

    def _find(self, key: str) -> Session[S]:
        if key not in self._sessions:
            raise SequenceError(
                f"stream {key} is not open: it never began, has ended, or was idle for more than "
                f"{self.idle_seconds:g} s; begin it with START and chunk 0"
            )
        session = self._sessions[key] = self._sessions.pop(key)
        session.used = self._clock()
        return session

    @contextmanager
    def _breaking(self, session: Session[S]) -> Iterator[None]:
        try:
            yield
        except RequestError:
            raise
        except BaseException as error:
            session.broken, session.state = str(error) or type(error).__name__, None
            self.broken += 1
            raise

    def _evict_idle(self) -> None:
        oldest = self._clock() - self.idle_seconds
        for key in [key for key, session in self._sessions.items() if session.used < oldest]:
            self._evict(key)

    def _evict(self, key: str) -> None:
        del self._sessions[key]
        self.evicted += 1
