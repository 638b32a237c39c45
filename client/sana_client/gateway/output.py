"""What a session's viewers get for a chunk: layout, encoding, pacing, statistics."""

import asyncio
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sana_client.gateway.audience import Audience, OutChunk
from sana_client.gateway.encodings import make_encoder
from sana_client.gateway.framing import DEFAULT_FORMATS, ChunkHeader, Packed, pack, unpacked
from sana_client.gateway.generation import LivePiece
from sana_client.gateway.messages import Init
from sana_client.gateway.pacing import Cadence, Pacer
from sana_client.session import Edited

DEFAULT_FPS = 24


@dataclass(frozen=True)
class OutputForm:
    """How frames go out; `layout` is "edited", or "pair" for the source to the left of the edit."""

    format: str
    framing: str
    quality: int | None
    max_width: int | None
    layout: str
    fps: int
    paced: bool

    @classmethod
    def of(cls, init: Init, framing: str) -> "OutputForm":
        """What an init asks for; raises UsageError for an unusable quality or width."""
        framing = init.framing or framing
        form = init.realtime_output_format or DEFAULT_FORMATS[framing]
        make_encoder(form, init.output_compression, init.realtime_preview_max_width)
        fps, quality, width = init.fps or DEFAULT_FPS, init.output_compression, init.realtime_preview_max_width
        return cls(form, framing, quality, width, init.layout, fps, init.realtime_output_pacing)


@dataclass
class Timing:
    """Where the time of one chunk went, in seconds."""

    prepared: float
    edited: float
    packed: float = 0.0
    paced: float = 0.0

    def stats(self, packed: Packed, written_ms: int) -> dict[str, Any]:
        """The time keys of `chunk_stats`, whole milliseconds."""
        milliseconds = {
            "request_prepare_ms": self.prepared,
            "scheduler_forward_ms": self.edited,
            "pace_wait_ms": self.paced,
            "raw_payload_build_ms": self.packed,
        }
        whole = {name: int(seconds * 1e3 + 0.5) for name, seconds in milliseconds.items()}
        return whole | {
            "header_write_ms": 0,
            "raw_write_ms": written_ms,
            "ws_write_ms": written_ms,
            "chunk_total_ms": sum(whole.values()) + written_ms,
            "num_batches": packed.batches,
            "num_frames": packed.frames,
            "raw_bytes": packed.raw_bytes,
            "ws_payload_bytes": packed.payload_bytes,
            "content_type": packed.content_type,
        }


@dataclass
class Output:
    """Turns edited chunks into messages and hands them to the audience."""

    session_id: str
    form: OutputForm
    audience: Audience
    cadence: Cadence
    pacer: Pacer | None
    frames: int = 0
    _encoder: Any = field(init=False)
    _event_id: int | None = None

    def __post_init__(self) -> None:
        self._encoder = make_encoder(self.form.format, self.form.quality, self.form.max_width)

    async def show(self, piece: LivePiece, edited: Edited, extra: dict[str, Any]) -> Timing:
        """Send one chunk to the audience at its time; `extra` goes into its statistics."""
        timing = Timing(piece.prepared, edited.seconds)
        began = time.monotonic()
        request_id = f"{self.session_id}_{secrets.token_hex(4)}"
        frames, packed = await asyncio.to_thread(self._packed, piece, edited, request_id)
        timing.packed = time.monotonic() - began
        if self.pacer:
            timing.paced = self.pacer.wait(piece.plan.event_id)
            await asyncio.sleep(timing.paced)
            self.pacer.sent(packed.frames)
        late = self.cadence.delivered(packed.frames)
        fixed = {
            "type": "chunk_stats",
            "session_id": self.session_id,
            "request_id": request_id,
            "chunk_index": piece.plan.index,
            "event_id": piece.plan.event_id,
            "late_ms": round(late * 1e3),
        }
        stats = fixed | extra
        arrived = tuple(frame.arrived for frame in piece.source.frames)
        chunk = OutChunk(frames, arrived, packed, lambda written: stats | timing.stats(packed, written))
        await self.audience.show(chunk)
        self.frames += packed.frames
        return timing

    def _packed(self, piece: LivePiece, edited: Edited, request_id: str) -> tuple[np.ndarray, Packed]:
        frames = edited.frames[: piece.source.real]
        if self.form.layout == "pair":
            frames = np.concatenate([piece.source.pixels[: len(frames)], frames], axis=2)
        if not self.audience.packs:
            return frames, unpacked(frames)
        if self.audience.newcomers or piece.plan.event_id != self._event_id or piece.plan.index == 0:
            self._encoder.key()
        self.audience.newcomers, self._event_id = False, piece.plan.event_id
        header = ChunkHeader(request_id, piece.plan.index, piece.plan.event_id, self.frames, piece.source.captured_ms)
        return frames, pack(np.ascontiguousarray(frames), header, self._encoder, self.form.framing)
