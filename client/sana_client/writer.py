"""Writing the edited video with the timing and the sound of its source."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Final

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

from sana_client.errors import UsageError, VideoError, choose
from sana_client.video import STDIN, VideoReader

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.packet import Packet


@dataclass(frozen=True)
class Format:
    """How a file of one suffix is written."""

    container: str
    options: dict[str, str] = field(default_factory=dict)


FASTSTART = {"movflags": "faststart"}
FORMATS = {
    ".mp4": Format("mp4", FASTSTART),
    ".mov": Format("mov", FASTSTART),
    ".mkv": Format("matroska"),
}
ENCODER: Final = "libx264"
ENCODER_OPTIONS = {"crf": "18", "preset": "fast"}
BT709 = 1
"""The code for BT.709 in the stream's matrix field; PyAV has no name for it there."""


def check_output(path: Path, source: str) -> Format:
    """The format of output `path`; raises UsageError if it cannot be written or is the source itself."""
    chosen = choose("output suffix", path.suffix.lower(), FORMATS)
    check_writable(path)
    if source != STDIN and path.exists() and Path(source).exists() and path.samefile(source):
        raise UsageError(f"{path} is the input: choose another output file")
    return chosen


def check_writable(path: Path) -> None:
    """Raise UsageError unless a file can be written at `path`."""
    if not path.parent.is_dir():
        raise UsageError(f"the folder {path.parent} does not exist: create it or choose another output file")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"{path} cannot be written: choose another output file")


class VideoWriter:
    """H.264 at the source's timestamps, its audio copied packet by packet; `warnings` names audio left out.

    The file appears with the first frame. It is playable after `close`, however early that comes.
    """

    def __init__(self, path: Path, height: int, width: int, reader: VideoReader, form: Format) -> None:
        self._path = path
        self._time_base: Fraction = reader.time_base
        self._container = av.open(str(path), "w", format=form.container, options=form.options)
        self._video = self._container.add_stream(ENCODER, rate=reader.rate, options=ENCODER_OPTIONS)
        self._video.width, self._video.height, self._video.pix_fmt = width, height, "yuv420p"
        context = self._video.codec_context
        context.time_base = reader.time_base
        context.colorspace, context.color_range = BT709, ColorRange.MPEG
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        self.warnings: list[str] = []
        self._audio = {stream.index: copy for stream in reader.audio_streams if (copy := self._copy_audio(stream))}

    def _copy_audio(self, stream: "AudioStream") -> "AudioStream | None":
        codec = stream.codec_context.name
        if codec in self._container.supported_codecs:
            return self._container.add_stream_from_template(stream)
        self.warnings.append(
            f"{self._path.suffix} files cannot hold {codec} audio, it is left out: another suffix may hold it"
        )
        return None

    def write(self, frames: np.ndarray, pts: Sequence[int], audio: "Sequence[Packet]") -> None:
        """Append uint8 frames (F, H, W, 3) shown at `pts`, and the audio packets; raises VideoError on a full disk."""
        try:
            for packet in audio:
                self._mux_audio(packet)
            for pixels, time in zip(frames, pts, strict=True):
                self._container.mux(self._video.encode(self._frame(pixels, time)))
        except (av.FFmpegError, OSError) as error:
            raise self._failed(error) from None

    def _mux_audio(self, packet: "Packet") -> None:
        if packet.stream.index in self._audio:
            packet.stream = self._audio[packet.stream.index]
            self._container.mux(packet)

    def _frame(self, pixels: np.ndarray, pts: int) -> av.VideoFrame:
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
        frame.pts, frame.time_base = pts, self._time_base
        return frame

    def close(self) -> None:
        """Finish the file; raises VideoError on a full disk."""
        try:
            self._container.mux(self._video.encode(None))
            self._container.close()
        except (av.FFmpegError, OSError) as error:
            raise self._failed(error) from None

    def _failed(self, error: av.FFmpegError | OSError) -> VideoError:
        return VideoError(f"{self._path} cannot be written ({error.strerror}): check the disk")
