"""Pictures between a WebRTC peer and its session: the edited track going out, the newest camera frames coming in."""

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from aiortc import MediaStreamTrack
from av import VideoFrame

from sana_client.gateway.audience import OutChunk
from sana_client.gateway.signal import Signal
from sana_client.resize import resizer

CLOCK = 90000
MOST_WAITING = 8
"""Frames of a chunk that may wait for the track when the next chunk comes."""

LONGEST_INTERVAL = 0.1
"""Between two frames of a camera that runs, in seconds."""

CAMERA_FRAMES = 8
"""Camera frames that may wait to be brought to the model's size."""


class EditedTrack(MediaStreamTrack):
    """The edited frames as a video track, at the rate of the media.

    `held_ms` is how long the gateway had the frame that left last, None before the first.
    """

    kind = "video"

    def __init__(self, fps: int) -> None:
        super().__init__()
        self.held_ms: int | None = None
        self._fps = fps
        self._frames: deque[tuple[np.ndarray, float]] = deque()
        self._changed = Signal()
        self._count = 0
        self._due = 0.0

    async def put(self, chunk: OutChunk) -> None:
        """Queue the frames of a chunk once the ones before them are nearly shown."""
        await self._changed.until(lambda: len(self._frames) <= MOST_WAITING)
        self._frames.extend(zip(chunk.frames, chunk.arrived, strict=True))
        self._changed.notify()

    def clear(self) -> None:
        """Forget the frames that wait, as after a reset."""
        self._frames.clear()
        self._changed.notify()

    async def recv(self) -> VideoFrame:
        loop = asyncio.get_running_loop()
        await self._changed.until(lambda: self._frames)
        await asyncio.sleep(self._due - loop.time())
        await self._changed.until(lambda: self._frames)
        self._due = max(self._due, loop.time() - 1 / self._fps) + 1 / self._fps
        pixels, arrived = self._frames.popleft()
        frame = VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = round(self._count * CLOCK / self._fps), Fraction(1, CLOCK)
        self._count += 1
        self.held_ms = round((time.monotonic() - arrived) * 1e3)
        self._changed.notify()
        return frame


@dataclass
class Camera:
    """The newest frames of a peer's camera; older ones give way, so that lag cannot build up before the session."""

    dropped: int = 0
    _frames: deque[tuple[VideoFrame, float]] = field(default_factory=lambda: deque(maxlen=CAMERA_FRAMES))
    _changed: Signal = field(default_factory=Signal)

    async def watch(self, track: MediaStreamTrack) -> None:
        """Take every frame of the track as it comes; raises MediaStreamError at its end."""
        before = None
        while True:
            frame = await track.recv()
            if not isinstance(frame, VideoFrame):
                continue
            # The library hands a frame out when the next one begins to arrive.
            waited = min(max(0.0, frame.time - before), LONGEST_INTERVAL) if before is not None else 0.0
            before = frame.time
            self.dropped += len(self._frames) == CAMERA_FRAMES
            self._frames.append((frame, time.monotonic() - waited))
            self._changed.notify()

    async def next(self) -> tuple[VideoFrame, float]:
        """The oldest frame that is still here, and when it arrived."""
        await self._changed.until(lambda: self._frames)
        return self._frames.popleft()


def fitted(frame: VideoFrame, size: tuple[int, int]) -> np.ndarray:
    """The frame as uint8 (H, W, 3) of the model's size."""
    pixels = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(resizer(pixels.shape[:2], size)(pixels))
