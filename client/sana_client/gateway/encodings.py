"""Frames as bytes and back: raw RGB, delta-gzip, WebP and JPEG (realtime protocol 1.6)."""

import io
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from sana_client.errors import ServerLost, UsageError, choose

GZIP = 31
"""Window bits that make zlib write and read a gzip member."""

RAW_BATCH = 16
IMAGE_BATCH = 6
COMPRESSION = 1


@dataclass(frozen=True)
class Encoded:
    """A batch of frames ready to send: header keys, and the payload."""

    header: dict[str, Any]
    payload: bytes


class Encoder(Protocol):
    """Encodes the batches of one stream in order; `batch` is how many frames go into one message."""

    batch: int

    def encode(self, frames: np.ndarray) -> Encoded:
        """One message from uint8 frames (N, H, W, 3)."""

    def key(self) -> None:
        """Make the next batch independent of what was sent before."""


def geometry(frames: np.ndarray) -> dict[str, Any]:
    """The size keys of a header for uint8 frames (N, H, W, 3)."""
    _, height, width, channels = frames.shape
    return {
        "num_frames": len(frames),
        "width": width,
        "height": height,
        "channels": channels,
        "bytes_per_frame": height * width * channels,
    }


class RawEncoder:
    """RGB bytes, row by row."""

    batch = RAW_BATCH

    def encode(self, frames: np.ndarray) -> Encoded:
        payload = frames.tobytes()
        kind = {"content_type": "application/x-raw-rgb", "encoding": "raw", "format": "rgb24"}
        return Encoded(geometry(frames) | kind | {"raw_size": len(payload)}, payload)

    def key(self) -> None:
        """Every batch stands alone."""


@dataclass
class DeltaEncoder:
    """Each frame XOR the one before it, as one gzip member per message."""

    batch = RAW_BATCH
    _reference: np.ndarray | None = None

    def encode(self, frames: np.ndarray) -> Encoded:
        delta = frames.copy()
        delta[1:] ^= frames[:-1]
        header = geometry(frames) | {"content_type": "application/x-raw-rgb-delta-gzip", "encoding": "delta-gzip"}
        if self._reference is not None:
            delta[0] ^= self._reference
            header["delta_reference"] = "previous-frame"
        self._reference = frames[-1].copy()
        compressor = zlib.compressobj(COMPRESSION, wbits=GZIP)
        payload = compressor.compress(delta.tobytes()) + compressor.flush()
        return Encoded(header | {"format": "rgb24", "raw_size": delta.nbytes}, payload)

    def key(self) -> None:
        self._reference = None


@dataclass
class ImageEncoder:
    """One WebP or JPEG image per frame, at most `max_width` pixels wide."""

    kind: str
    options: dict[str, Any]
    max_width: int | None = None
    batch = IMAGE_BATCH

    def encode(self, frames: np.ndarray) -> Encoded:
        images = [self._image(frame) for frame in frames]
        width, height = images[0][0]
        parts = [data for _, data in images]
        source = geometry(frames)
        header = source | {
            "content_type": f"image/{self.kind}",
            "encoding": self.kind,
            "format": self.kind,
            "width": width,
            "height": height,
            "source_width": source["width"],
            "source_height": source["height"],
            "preview_width": width,
            "preview_height": height,
            "payload_lengths": [len(part) for part in parts],
        }
        return Encoded(header, b"".join(parts))

    def key(self) -> None:
        """Every image stands alone."""

    def _image(self, frame: np.ndarray) -> tuple[tuple[int, int], bytes]:
        from PIL import Image

        image = Image.fromarray(frame)
        if self.max_width and image.width > self.max_width:
            height = max(1, round(image.height * self.max_width / image.width))
            image = image.resize((self.max_width, height), Image.Resampling.BICUBIC)
        data = io.BytesIO()
        image.save(data, self.kind, **self.options)
        return image.size, data.getvalue()


def _webp(quality: int | None, max_width: int | None) -> Encoder:
    return ImageEncoder("webp", {"quality": quality or 90, "method": 0}, max_width)


def _jpeg(quality: int | None, max_width: int | None) -> Encoder:
    return ImageEncoder("jpeg", {"quality": quality or 95, "subsampling": 0}, max_width)


ENCODERS: Mapping[str, Callable[[int | None, int | None], Encoder]] = {
    "raw": lambda quality, max_width: RawEncoder(),
    "delta-gzip": lambda quality, max_width: DeltaEncoder(),
    "webp": _webp,
    "jpeg": _jpeg,
}


def make_encoder(name: str, quality: int | None = None, max_width: int | None = None) -> Encoder:
    """The encoder called `name`; raises UsageError for an unknown name or a quality that is none."""
    if quality and not 1 <= quality <= 100:
        raise UsageError(f"quality {quality} is not between 1 and 100")
    if max_width is not None and max_width < 1:
        raise UsageError(f"a preview {max_width} pixels wide cannot be shown: choose 1 or more")
    return choose("output format", name, ENCODERS)(quality, max_width)


@dataclass
class FrameDecoder:
    """What a client needs to get the frames of a stream back; raises ServerLost for a message it cannot use."""

    _last: np.ndarray | None = field(default=None)

    def decode(self, header: Mapping[str, Any], payload: bytes) -> np.ndarray:
        """uint8 frames (N, H, W, 3) of one message."""
        decode = choose("encoding", header["encoding"], DECODERS)
        return decode(self, header, payload)

    def _raw(self, header: Mapping[str, Any], payload: bytes) -> np.ndarray:
        shape = (header["num_frames"], header["height"], header["width"], header["channels"])
        if len(payload) != header["raw_size"] or len(payload) != np.prod(shape):
            raise ServerLost(f"{len(payload)} bytes came for frames of shape {shape}: the message is damaged")
        return np.frombuffer(payload, np.uint8).reshape(shape)

    def _delta(self, header: Mapping[str, Any], payload: bytes) -> np.ndarray:
        try:
            data = zlib.decompressobj(wbits=GZIP).decompress(payload, header["raw_size"] + 1)
        except zlib.error as error:
            raise ServerLost(f"a delta-gzip message is damaged ({error})") from None
        delta = self._raw(header, data).copy()
        if header.get("delta_reference"):
            if self._last is None:
                raise ServerLost("a delta without the frame before it: wait for a key batch")
            delta[0] ^= self._last
        frames = np.bitwise_xor.accumulate(delta, axis=0)
        self._last = frames[-1]
        return frames

    def _images(self, header: Mapping[str, Any], payload: bytes) -> np.ndarray:
        from PIL import Image

        ends = np.cumsum(header["payload_lengths"])
        parts = [payload[end - length : end] for end, length in zip(ends, header["payload_lengths"], strict=True)]
        return np.stack([np.asarray(Image.open(io.BytesIO(part)).convert("RGB")) for part in parts])


DECODERS: Mapping[str, Callable[[FrameDecoder, Mapping[str, Any], bytes], np.ndarray]] = {
    "raw": FrameDecoder._raw,
    "delta-gzip": FrameDecoder._delta,
    "webp": FrameDecoder._images,
    "jpeg": FrameDecoder._images,
}
