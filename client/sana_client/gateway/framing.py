"""Encoded frames as WebSocket messages: one map with the payload in it, or a header and then bare bytes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from sana_client.errors import ServerLost, choose
from sana_client.gateway.encodings import Encoder, FrameDecoder

INLINE_BYTES = 65536
"""From this size on the current profile sends header and payload apart."""


def _together(header: dict[str, Any], payload: bytes) -> list[bytes]:
    return [msgspec.msgpack.encode({"type": "frame_batch", **header, "payload": payload})]


def _apart_when_large(header: dict[str, Any], payload: bytes) -> list[bytes]:
    if len(payload) < INLINE_BYTES:
        return _together(header, payload)
    return [msgspec.msgpack.encode({"type": "frame_batch_header", **header}), payload]


FRAMINGS: Mapping[str, Callable[[dict[str, Any], bytes], list[bytes]]] = {
    "documented": _together,
    "current": _apart_when_large,
}
DEFAULT_FORMATS = {"documented": "delta-gzip", "current": "raw"}
"""What a client gets that names no output format."""


@dataclass(frozen=True)
class ChunkHeader:
    """What the frame messages of one chunk share; `captured_ms` are the source's own times of its frames."""

    request_id: str
    chunk_index: int
    event_id: int | None
    first_frame: int
    captured_ms: tuple[float | None, ...]

    def keys(self, start: int, count: int) -> dict[str, Any]:
        """The keys for `count` frames from `start` of the chunk on."""
        keys: dict[str, Any] = {"request_id": self.request_id, "chunk_index": self.chunk_index}
        if self.event_id is not None:
            keys["event_id"] = self.event_id
        return keys | {
            "frame_number": self.first_frame + start,
            "captured_ms": self.captured_ms[start : start + count],
        }


@dataclass(frozen=True)
class Packed:
    """The messages of one chunk in order, and what they weigh."""

    messages: list[bytes]
    batches: int
    frames: int
    raw_bytes: int
    payload_bytes: int
    content_type: str


def pack(frames: np.ndarray, chunk: ChunkHeader, encoder: Encoder, framing: str) -> Packed:
    """Encode uint8 frames (N, H, W, 3) of one chunk; raises UsageError for an unknown framing."""
    wrap = choose("framing", framing, FRAMINGS)
    starts = range(0, len(frames), encoder.batch)
    messages: list[bytes] = []
    payload_bytes, content_type = 0, ""
    for index, start in enumerate(starts):
        part = frames[start : start + encoder.batch]
        encoded = encoder.encode(part)
        content_type = encoded.header["content_type"]
        payload_bytes += len(encoded.payload)
        position = {
            "total_size": len(encoded.payload),
            "frame_batch_index": index,
            "num_frame_batches": len(starts),
            "is_final_frame_batch": index == len(starts) - 1,
        }
        messages += wrap(encoded.header | position | chunk.keys(start, len(part)), encoded.payload)
    return Packed(messages, len(starts), len(frames), frames.nbytes, payload_bytes, content_type)


def unpacked(frames: np.ndarray) -> Packed:
    """What there is to say of uint8 frames (N, H, W, 3) that nobody wants as messages."""
    return Packed([], 0, len(frames), frames.nbytes, 0, "")


@dataclass
class Reader:
    """Messages of a server in either framing, turned back into maps and frames."""

    _decoder: FrameDecoder = field(default_factory=FrameDecoder)
    _header: dict[str, Any] | None = None

    def feed(self, message: bytes) -> tuple[dict[str, Any], np.ndarray | None] | None:
        """The map of a message, with uint8 frames (N, H, W, 3) if it is about frames; None while half of it is missing.

        Raises ServerLost for a message that cannot be used.
        """
        if self._header is not None:
            header, self._header = self._header, None
            return header, self._decoder.decode(header, message)
        try:
            found = msgspec.msgpack.decode(message)
        except msgspec.DecodeError as error:
            raise ServerLost(f"the server sent a message that is not MessagePack ({error})") from None
        if found.get("type") == "frame_batch_header":
            self._header = found
            return None
        if found.get("type") == "frame_batch":
            payload = found.pop("payload")
            return found, self._decoder.decode(found, payload)
        return found, None
