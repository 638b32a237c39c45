"""Reading video with PyAV, from a file, pipe, device or network address alike, frame by frame."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import av
import numpy as np
from av.video.stream import VideoStream

from sana_client.errors import VideoError
from sana_client.resize import resizer

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame

STDIN = "-"
DEVICES = {"/dev/video": "v4l2"}
OPTIONS = {"rtsp://": {"rtsp_transport": "tcp"}}
NETWORK_SECONDS = 15.0
DEFAULT_RATE = Fraction(30)


@dataclass(frozen=True)
class Frame:
    """One RGB frame, uint8 (H, W, 3), shown at `pts` units of the reader's time base after the start."""

    pixels: np.ndarray
    pts: int


class VideoReader:
    """A video opened for one pass, at most one frame decoded ahead. Raises VideoError when it is not a video."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._container = _open(name)
        video = self._container.streams.best("video")
        if not isinstance(video, VideoStream):
            self._container.close()
            raise VideoError(f"{name} has no video stream: give a file, pipe, device or address that has one")
        self._video = video
        self.audio_streams = list(self._container.streams.audio)
        self._audio: deque[Packet] = deque()
        self.rate: Fraction = video.average_rate or video.guessed_rate or DEFAULT_RATE
        self.time_base: Fraction = video.time_base or 1 / self.rate
        # A start before zero is the audio's priming, which belongs there; live sources start anywhere after it.
        self._start = max(Fraction(self._container.start_time or 0, av.time_base), Fraction(0))

    def close(self) -> None:
        self._container.close()

    @property
    def length(self) -> int | None:
        """Expected number of frames, None when the source does not say, as a live one."""
        if self._video.frames:
            return self._video.frames
        if self._container.duration:
            return round(self._container.duration * self.rate / av.time_base)
        return None

    def frames(self, height: int, width: int) -> Iterator[Frame]:
        """Every frame upright, scaled to cover and cropped to `height` x `width`; raises VideoError where damaged."""
        pts = -1
        for frame in self._decoded():
            pts = max(self._pts(frame, pts), pts + 1)
            pixels = _upright(frame)
            yield Frame(resizer(pixels.shape[:2], (height, width))(pixels), pts)

    def take_audio(self) -> list["Packet"]:
        """The audio packets met since the last call, their times counted from the start of the video."""
        return [self._audio.popleft() for _ in range(len(self._audio))]

    def _decoded(self) -> Iterator["VideoFrame"]:
        count = 0
        try:
            for packet in self._container.demux(self._video, *self.audio_streams):
                if packet.stream.type == "audio":
                    self._keep(packet)
                    continue
                for frame in self._video.decode(packet):
                    count += 1
                    yield frame
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"{self.name} is damaged or was cut off after frame {count} ({error.strerror})") from None

    def _keep(self, packet: "Packet") -> None:
        if packet.dts is None:
            return
        offset = round(self._start / packet.time_base)
        packet.pts = (packet.dts if packet.pts is None else packet.pts) - offset
        packet.dts -= offset
        self._audio.append(packet)

    def _pts(self, frame: "VideoFrame", before: int) -> int:
        if frame.pts is not None:
            return frame.pts - round(self._start / self.time_base)
        return 0 if before < 0 else before + round(1 / (self.rate * self.time_base))


def _open(name: str) -> "InputContainer":
    device = next((kind for prefix, kind in DEVICES.items() if name.startswith(prefix)), None)
    options = next((chosen for prefix, chosen in OPTIONS.items() if name.startswith(prefix)), {})
    # A pipe may be silent for as long as it likes, a network peer that is silent has gone.
    timeout = NETWORK_SECONDS if "://" in name else None
    try:
        return av.open("pipe:0" if name == STDIN else name, format=device, options=options, timeout=timeout)
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{name} cannot be read as a video ({error.strerror}): check the name and the file") from None


def _upright(frame: "VideoFrame") -> np.ndarray:
    pixels = frame.to_ndarray(format="rgb24")
    return np.rot90(pixels, round(frame.rotation / 90)) if frame.rotation else pixels
