"""When a chunk is shown: media-time pacing, and how well a stream keeps its cadence."""

from collections.abc import Callable
from dataclasses import dataclass

Clock = Callable[[], float]


@dataclass
class Pacer:
    """Holds chunks back so that a viewer is never more than one chunk ahead; lateness is not made up."""

    fps: float
    clock: Clock
    _next: float = 0.0
    _event_id: int | None = None

    def wait(self, event_id: int | None) -> float:
        """Seconds to wait before the next chunk is sent; a chunk that shows a new event goes at once."""
        changed, self._event_id = event_id != self._event_id, event_id
        if changed:
            self._next = min(self._next, self.clock())
        return max(0.0, self._next - self.clock())

    def sent(self, frames: int) -> None:
        """A chunk of so many frames goes out now."""
        self._next = max(self._next, self.clock()) + frames / self.fps


@dataclass
class Cadence:
    """Deadlines of a viewer that plays at `fps` and shows each chunk as soon as the one before it is over.

    A chunk that is not there by then is an underrun, and the picture stands still for `stalled` seconds in all.
    """

    fps: float
    clock: Clock
    chunks: int = 0
    underruns: int = 0
    stalled: float = 0.0
    _shown_until: float | None = None

    def delivered(self, frames: int) -> float:
        """Count a chunk that is on its way now; by how many seconds it was late."""
        now = self.clock()
        late = max(0.0, now - self._shown_until) if self._shown_until is not None else 0.0
        start = now if self._shown_until is None else max(now, self._shown_until)
        self.chunks += 1
        self.underruns += late > 0
        self.stalled += late
        self._shown_until = start + frames / self.fps
        return late

    def interrupted(self) -> None:
        """A pause or a new start: the next chunk has no deadline."""
        self._shown_until = None

    @property
    def attained(self) -> float:
        """Share of the chunks that were in time, 1.0 without any."""
        return 1.0 - self.underruns / self.chunks if self.chunks else 1.0
