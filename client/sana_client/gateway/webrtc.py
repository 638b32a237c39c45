"""WebRTC: the camera as a track, the edit as a track, commands and session messages over a data channel."""

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import msgspec
import numpy as np
from aiortc import MediaStreamTrack, RTCDataChannel, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError
from av import VideoFrame

from sana_client.errors import ClientError
from sana_client.gateway import messages as m
from sana_client.gateway.access import Caller
from sana_client.gateway.audience import Outbox, OutChunk, SlowReader
from sana_client.gateway.hub import Hub
from sana_client.gateway.live import LiveSession
from sana_client.gateway.opening import open_session, prepared
from sana_client.gateway.output import DEFAULT_FPS
from sana_client.gateway.refusals import InvalidRequest
from sana_client.gateway.signal import Signal
from sana_client.resize import resizer

CLOCK = 90000
MOST_WAITING = 8
"""Frames of a chunk that may wait for the track when the next chunk comes."""

COMMANDS = 64
CONNECT_SECONDS = 30.0
GONE = frozenset(("failed", "closed"))


class EditedTrack(MediaStreamTrack):
    """The edited frames as a video track, at the rate of the media."""

    kind = "video"

    def __init__(self, fps: int) -> None:
        super().__init__()
        self._fps = fps
        self._frames: deque[np.ndarray] = deque()
        self._changed = Signal()
        self._count = 0
        self._due = 0.0

    async def put(self, frames: np.ndarray) -> None:
        """Queue uint8 frames (F, H, W, 3) once the ones before them are nearly shown."""
        await self._changed.until(lambda: len(self._frames) <= MOST_WAITING)
        self._frames.extend(frames)
        self._changed.notify()

    async def recv(self) -> VideoFrame:
        await self._changed.until(lambda: self._frames)
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._due - loop.time())
        self._due = max(self._due, loop.time() - 1 / self._fps) + 1 / self._fps
        frame = VideoFrame.from_ndarray(self._frames.popleft(), format="rgb24")
        frame.pts, frame.time_base = round(self._count * CLOCK / self._fps), Fraction(1, CLOCK)
        self._count += 1
        self._changed.notify()
        return frame


@dataclass
class PeerWire:
    """Writes to a peer: frames into the track, everything else as JSON once the data channel is open."""

    track: EditedTrack
    channel: RTCDataChannel | None = None
    _early: list[str] = field(default_factory=list)

    async def map(self, found: dict[str, Any]) -> None:
        text = msgspec.json.encode(found).decode()
        if self.channel is None:
            self._early.append(text)
        elif self.channel.readyState == "open":
            self.channel.send(text)

    async def chunk(self, chunk: OutChunk) -> None:
        await self.track.put(chunk.frames)

    def attach(self, channel: RTCDataChannel) -> None:
        """Send what had to wait, and use the channel from now on."""
        self.channel = channel
        for text in self._early:
            channel.send(text)


@dataclass(eq=False)
class Peer:
    """One peer connection and its session, which ends with it."""

    connection: RTCPeerConnection
    live: LiveSession
    outbox: Outbox
    wire: PeerWire
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _messages: asyncio.Queue[bytes | str] = field(default_factory=lambda: asyncio.Queue(COMMANDS))

    def begin(self) -> None:
        """Take tracks, commands and the end of the connection from now on."""
        self.connection.on("track", self._on_track)
        self.connection.on("datachannel", self._on_channel)
        self.connection.on("connectionstatechange", self._on_state)
        self.connection.addTrack(self.wire.track)
        self.live.open()
        self._tasks += [asyncio.create_task(work) for work in (self._write(), self._obey(), self._expect())]

    def _on_track(self, track: MediaStreamTrack) -> None:
        if track.kind == "video":
            self._tasks.append(asyncio.create_task(self._read(track)))

    def _on_channel(self, channel: RTCDataChannel) -> None:
        channel.on("message", self._on_message)
        self.wire.attach(channel)

    def _on_message(self, data: bytes | str) -> None:
        if self._messages.full():
            self.outbox.post(m.error_message("invalid event", "too many commands wait: send fewer"))
        else:
            self._messages.put_nowait(data)

    async def _on_state(self) -> None:
        if self.connection.connectionState in GONE:
            await self.close()

    async def _expect(self) -> None:
        """Give up on a peer that asked for an answer and never came."""
        await asyncio.sleep(CONNECT_SECONDS)
        if self.connection.connectionState != "connected":
            await self.connection.close()

    async def _read(self, track: MediaStreamTrack) -> None:
        size = self.live.machine.info.shape(1)[2:4]
        # The track ends with the camera; the session may go on with another source.
        with suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                if isinstance(frame, VideoFrame) and self.live.machine.mode == "live":
                    await self.live.push_pixels(await asyncio.to_thread(_pixels, frame, size), None, None)

    async def _write(self) -> None:
        try:
            await self.outbox.run()
        except SlowReader:
            self.live.ended = "slow reader"
            await self.connection.close()

    async def _obey(self) -> None:
        while True:
            data = await self._messages.get()
            try:
                found = m.decode_map(data)
                if not m.is_command(found):
                    raise InvalidRequest("the data channel takes commands")
                await self.live.command(*m.read_command(found))
            except ClientError as error:
                self.outbox.post(m.error_message("invalid event", str(error)))

    async def close(self) -> None:
        """End the session; harmless when it has ended."""
        if self.live.id not in self.live.hub.sessions:
            return
        current = asyncio.current_task()
        for task in self._tasks:
            if task is not current:
                task.cancel()
        self.wire.track.stop()
        await self.live.close()


def _pixels(frame: VideoFrame, size: tuple[int, int]) -> np.ndarray:
    pixels = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(resizer(pixels.shape[:2], size)(pixels))


async def answer(offer: dict[str, Any], hub: Hub, caller: Caller) -> dict[str, str]:
    """The SDP answer to an offer map (`sdp`, and an `init`), its session idle; raises InvalidRequest."""
    init = m.read_init({"prompt": "", **offer.get("init", {}), "type": "init", "commands": True})
    track = EditedTrack(init.fps or DEFAULT_FPS)
    wire = PeerWire(track)
    outbox = Outbox(wire, hub.settings.stall_seconds)
    live = await prepared(open_session(init, hub, caller, outbox), init)
    connection = RTCPeerConnection()
    Peer(connection, live, outbox, wire).begin()
    try:
        await connection.setRemoteDescription(RTCSessionDescription(offer["sdp"], "offer"))
        await connection.setLocalDescription(await connection.createAnswer())
    except Exception as error:
        # The library raises whatever its parser trips over.
        await connection.close()
        raise InvalidRequest(f"the offer cannot be used ({type(error).__name__}: {str(error)[:80]})") from None
    local = connection.localDescription
    return {"type": local.type, "sdp": local.sdp, "session_id": live.id}
