"""Source frames between whoever brings them and the chunks they become; bounded, and the oldest gives way."""

from collections import deque
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np


@dataclass(frozen=True, eq=False)
class SourceFrame:
    """One frame at the model's size, uint8 (H, W, 3).

    `captured_ms` is the time on the sender's clock, `arrived` on ours (seconds).
    """

    pixels: np.ndarray
    number: int
    captured_ms: float | None
    arrived: float


@dataclass(frozen=True, eq=False)
class Gathered:
    """The source's frames of one chunk of `count`."""

    frames: tuple[SourceFrame, ...]
    count: int

    @property
    def real(self) -> int:
        return len(self.frames)

    @property
    def nbytes(self) -> int:
        return self.count * self.frames[0].pixels.nbytes

    @cached_property
    def pixels(self) -> np.ndarray:
        """uint8 (count, H, W, 3), the last frame repeated to fill it; copied together when it is first asked for."""
        found = [frame.pixels for frame in self.frames]
        return np.stack([*found, *[found[-1]] * (self.count - len(found))])

    @property
    def captured_ms(self) -> tuple[float | None, ...]:
        return tuple(frame.captured_ms for frame in self.frames)


@dataclass
class FrameBuffer:
    """At most `capacity` frames that wait for a chunk. Counts what came in and what was dropped."""

    capacity: int
    received: int = 0
    dropped: int = 0
    ended: bool = False
    _frames: deque[SourceFrame] = field(default_factory=deque)

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def full(self) -> bool:
        return len(self._frames) >= self.capacity

    def push(self, frame: SourceFrame) -> None:
        """Take a frame in; without room the oldest one is dropped, so that the lag stays bounded."""
        self.received += 1
        if self.full:
            self._frames.popleft()
            self.dropped += 1
        self._frames.append(frame)

    def ready(self, count: int) -> bool:
        """Whether a chunk of `count` frames can be taken."""
        return len(self._frames) >= count or (self.ended and bool(self._frames))

    @property
    def finished(self) -> bool:
        """Whether the source has ended and every frame of it was taken."""
        return self.ended and not self._frames

    def take(self, count: int) -> Gathered:
        """The oldest `count` frames, at least one of which is there; at the end of the source the last one repeats."""
        frames = tuple(self._frames.popleft() for _ in range(min(count, len(self._frames))))
        return Gathered(frames, count)

    def clear(self) -> None:
        """Forget the frames that wait, as after a pause; they do not count as dropped."""
        self._frames.clear()
