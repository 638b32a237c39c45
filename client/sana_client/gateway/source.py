"""Source frames from what a client sends, or from a file."""

import asyncio
import io
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np

from sana_client.ahead import Ahead
from sana_client.errors import VideoError
from sana_client.gateway.edge import FrameBuffer, SourceFrame
from sana_client.gateway.messages import Frame
from sana_client.gateway.refusals import InvalidRequest
from sana_client.gateway.signal import Signal
from sana_client.resize import resizer
from sana_client.video import VideoReader

IMAGES = ("JPEG", "WEBP", "PNG")
CHANNELS = 3
LARGEST_SIDE = 16384


def decode_frames(frame: Frame, size: tuple[int, int], most_pixels: int) -> list[np.ndarray]:
    """uint8 (H, W, 3) at the model's `size`, one per source frame; raises InvalidRequest for what is no picture."""
    sources = [_image(frame.data, size, most_pixels)] if frame.format == "image" else _raw(frame, most_pixels)
    return [np.ascontiguousarray(resizer(source.shape[:2], size)(source)) for source in sources]


def _image(data: bytes, size: tuple[int, int], most_pixels: int) -> np.ndarray:
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data), formats=IMAGES)
        _check_size(*image.size, most_pixels)
        # A large JPEG is decoded at the smallest of its built-in scales that still covers the model's size.
        image.draft("RGB", (size[1], size[0]))
        return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InvalidRequest(f"the frame is no JPEG, WebP or PNG image ({str(error)[:80]})") from None


def _raw(frame: Frame, most_pixels: int) -> list[np.ndarray]:
    if frame.width is None or frame.height is None:
        raise InvalidRequest("rgb24 frames need width and height")
    _check_size(frame.width, frame.height, most_pixels)
    count, rest = divmod(len(frame.data), frame.width * frame.height * CHANNELS)
    if rest or not count:
        raise InvalidRequest(f"{len(frame.data)} bytes are no whole rgb24 frames of {frame.width}x{frame.height}")
    return list(np.frombuffer(frame.data, np.uint8).reshape(count, frame.height, frame.width, CHANNELS))


def _check_size(width: int, height: int, most_pixels: int) -> None:
    if width * height > most_pixels or max(width, height) > LARGEST_SIDE:
        raise InvalidRequest(f"a frame of {width}x{height} is too large: send at most {most_pixels} pixels")


@asynccontextmanager
async def filled(path: Path | None, size: tuple[int, int], buffer: FrameBuffer, changed: Signal) -> AsyncIterator[None]:
    """A buffer that the block finds filled from a video, if there is a path; raises VideoError for a damaged one."""
    if path is None:
        yield
        return
    feeder = asyncio.create_task(_feed(path, size, buffer, changed))
    try:
        yield
        if buffer.ended:
            await feeder
    finally:
        feeder.cancel()
        await asyncio.wait([feeder])


async def _feed(path: Path, size: tuple[int, int], buffer: FrameBuffer, changed: Signal) -> None:
    """Push every frame as soon as there is room, then end the buffer."""
    reader = VideoReader(str(path))
    frames = Ahead(reader.frames(*size))
    try:
        number = 0
        async for frame in frames:
            await changed.until(lambda: not buffer.full)
            milliseconds = float(frame.pts * reader.time_base * 1000)
            buffer.push(SourceFrame(frame.pixels, number, milliseconds, time.monotonic()))
            number += 1
            changed.notify()
    except VideoError as error:
        # Where the file lies is no business of the client's.
        raise VideoError(str(error).replace(str(path), "the video")) from None
    finally:
        buffer.ended = True
        changed.notify()
        if await frames.join():
            reader.close()
