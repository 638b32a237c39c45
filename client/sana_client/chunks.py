"""A video cut into the chunks of a stream: the first, then steady ones, the last filled up by repeating its end."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from sana_client.errors import UsageError, VideoError
from sana_client.protocol import StreamInfo

if TYPE_CHECKING:
    from av.packet import Packet

    from sana_client.video import Frame, VideoReader


@dataclass(frozen=True)
class Prompts:
    """The prompt of each moment: `start`, then `changes` as (seconds, prompt) in order of time."""

    start: str
    changes: tuple[tuple[float, str], ...] = ()

    @classmethod
    def parse(cls, start: str, changes: Sequence[str]) -> "Prompts":
        """From texts like "2.5=make it night"; raises UsageError for any other form."""
        return cls(start, tuple(sorted(map(_parse_change, changes), key=lambda change: change[0])))

    def at(self, seconds: float) -> str:
        """The prompt of a chunk whose first frame is shown at `seconds`."""
        passed = bisect_right([time for time, _ in self.changes], seconds)
        return self.changes[passed - 1][1] if passed else self.start


def _parse_change(text: str) -> tuple[float, str]:
    seconds, separator, prompt = text.partition("=")
    try:
        if separator and float(seconds) >= 0:
            return float(seconds), prompt
    except ValueError:
        pass  # told below, like every other malformed change
    raise UsageError(f'prompt change {text!r} is not SECONDS=PROMPT: write it like --prompt-at "2.5=make it night"')


@dataclass(frozen=True)
class Chunk:
    """One chunk to send: `index` in its sequence, and uint8 `frames` (F, H, W, 3); the first `len(pts)` are real."""

    index: int
    frames: np.ndarray
    prompt: str
    pts: tuple[int, ...]
    audio: "list[Packet]"

    @property
    def last(self) -> bool:
        """Whether the video is known to end here: the last chunk is filled up unless the video fits exactly."""
        return len(self.pts) < len(self.frames)


def cut(reader: "VideoReader", info: StreamInfo, prompts: Prompts) -> Iterator[Chunk]:
    """The chunks of a video; after `max_chunks` a new sequence begins with index 0.

    Raises VideoError for a video too short for chunk 0, and for a damaged one after the chunks that could be read.
    """
    frames = reader.frames(info.height, info.width)
    index = 0
    batch, damage = _take(frames, info.frames(0))
    if len(batch) < info.first_frames:
        raise damage or VideoError(
            f"{reader.name} has {len(batch)} frames: this model needs at least {info.first_frames}"
        )
    while batch:
        prompt = prompts.at(float(batch[0].pts * reader.time_base))
        yield _chunk(index, batch, info.frames(index), prompt, reader.take_audio())
        if damage:
            raise damage
        index = (index + 1) % info.max_chunks
        batch, damage = _take(frames, info.frames(index))
    if damage:
        raise damage


def _take(frames: "Iterator[Frame]", count: int) -> "tuple[list[Frame], VideoError | None]":
    batch: list[Frame] = []
    try:
        batch.extend(islice(frames, count))
    except VideoError as error:
        return batch, error
    return batch, None


def _chunk(index: int, batch: "list[Frame]", size: int, prompt: str, audio: "list[Packet]") -> Chunk:
    pixels = [frame.pixels for frame in batch]
    pixels += [pixels[-1]] * (size - len(pixels))
    return Chunk(index, np.stack(pixels), prompt, tuple(frame.pts for frame in batch), audio)
