"""Small videos made on the spot, each with one peculiarity."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

RATE = 25


def picture(index: int, height: int, width: int) -> np.ndarray:
    """A smooth uint8 frame (H, W, 3) that differs from its neighbours and survives H.264 well."""
    y, x = np.mgrid[:height, :width]
    shades = [60 + 2 * index % 120 + 60 * x / width, 200 - 100 * y / height, np.full((height, width), 40 + index % 50)]
    return np.stack(shades, -1).astype(np.uint8)


def write_clip(
    path: Path,
    frames: int = 60,
    size: tuple[int, int] = (48, 64),
    *,
    pts: Sequence[int] | None = None,
    rotation: int = 0,
    audio: str = "",
    format: str | None = None,
) -> Path:
    """Write an H.264 clip of `picture`s; `pts` count in thousandths of a second, `audio` is the name of a codec."""
    with av.open(str(path), "w", format=format) as container:
        video = container.add_stream("libx264", rate=RATE, options={"crf": "8", "preset": "ultrafast"})
        video.height, video.width, video.pix_fmt = *size, "yuv420p" if size[0] % 2 == size[1] % 2 == 0 else "yuv444p"
        video.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            video.set_display_rotation(rotation)
        sound = container.add_stream(audio, rate=48000) if audio else None
        times = pts if pts is not None else [index * 1000 // RATE for index in range(frames)]
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(index, *size), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if sound:
            write_tone(container, sound, len(times) / RATE)
    return path


def write_tone(container: av.container.OutputContainer, sound: av.AudioStream, seconds: float) -> None:
    """Append a 440 Hz tone and finish the audio stream."""
    step = sound.codec_context.frame_size or 1024
    for start in range(0, int(seconds * 48000), step):
        wave = np.sin(2 * np.pi * 440 * np.arange(start, start + step) / 48000, dtype=np.float64)
        samples = (wave * 8000).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
        container.mux(sound.encode(frame))
    container.mux(sound.encode(None))
