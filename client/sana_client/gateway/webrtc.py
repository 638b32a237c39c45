"""WebRTC: the camera as a track, the edit as a track, commands and session messages over a data channel."""

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiortc import MediaStreamTrack, RTCConfiguration, RTCDataChannel, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError

from sana_client.errors import ClientError
from sana_client.gateway import messages as m
from sana_client.gateway.access import Caller
from sana_client.gateway.alive import LOOK_SECONDS, SILENT, LifeSigns
from sana_client.gateway.audience import Outbox, OutChunk, SlowReader
from sana_client.gateway.edge import SourceFrame
from sana_client.gateway.hub import Hub
from sana_client.gateway.live import LiveSession
from sana_client.gateway.machine import Phase
from sana_client.gateway.opening import open_session, prepared
from sana_client.gateway.output import DEFAULT_FPS
from sana_client.gateway.peer_media import Camera, EditedTrack, fitted
from sana_client.gateway.refusals import InvalidRequest

COMMANDS = 64
CONNECT_SECONDS = 30.0
GONE = frozenset(("failed", "closed"))
NO_SERVERS = RTCConfiguration(iceServers=[])
"""Peers meet at the addresses of this machine; the library would ask a public server for more of them."""


@dataclass
class PeerWire:
    """Writes to a peer: frames into the track, everything else as JSON once the data channel is open."""

    track: EditedTrack
    channel: RTCDataChannel | None = None
    packs: bool = False
    _early: list[str] = field(default_factory=list)

    async def map(self, found: dict[str, Any]) -> None:
        if found["type"] == "generation_reset":
            self.track.clear()
        text = msgspec.json.encode(found).decode()
        if self.channel is None:
            self._early.append(text)
        elif self.channel.readyState == "open":
            self.channel.send(text)

    async def chunk(self, chunk: OutChunk) -> None:
        await self.track.put(chunk)

    async def ping(self) -> None:
        """Make a living peer answer, whose network code acknowledges whatever the channel brings."""
        if self.channel:
            await self.map({"type": "ping", "held_ms": self.track.held_ms})

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
    _camera: Camera = field(default_factory=Camera)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _messages: asyncio.Queue[bytes | str] = field(default_factory=lambda: asyncio.Queue(COMMANDS))

    def begin(self) -> None:
        """Take tracks, commands and the end of the connection from now on."""
        self.connection.on("track", self._on_track)
        self.connection.on("datachannel", self._on_channel)
        self.connection.on("connectionstatechange", self._on_state)
        self.connection.addTrack(self.wire.track)
        self.live.hang_up = self._hang_up
        self.live.open()
        work = (self._write(), self._obey(), self._feed(), self._watch())
        self._tasks += [asyncio.create_task(part) for part in work]

    def _on_track(self, track: MediaStreamTrack) -> None:
        if track.kind == "video":
            self._tasks.append(asyncio.create_task(self._film(track)))

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
            await self.live.close()

    async def _watch(self) -> None:
        """Give up on a peer that asked for an answer and never came, or that has fallen silent."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CONNECT_SECONDS):
                while self.connection.connectionState != "connected":
                    await asyncio.sleep(LOOK_SECONDS)
            await self._until_silent()
        self.live.ended = SILENT
        await self.live.close()

    async def _until_silent(self) -> None:
        signs = LifeSigns(time.monotonic)
        while not signs.dead(self.live.running is not None):
            await self.wire.ping()
            await asyncio.sleep(LOOK_SECONDS)
            signs.seen(await self._received())

    async def _received(self) -> int:
        """Packets of any kind that the peer has sent so far."""
        report = await self.connection.getStats()
        return sum(found.packetsReceived for found in report.values() if found.type == "transport")

    async def _film(self, track: MediaStreamTrack) -> None:
        # The track ends with the camera; the session may go on with another source.
        with suppress(MediaStreamError):
            await self._camera.watch(track)

    async def _feed(self) -> None:
        size = self.live.machine.info.shape(1)[2:4]
        while True:
            frame, arrived = await self._camera.next()
            dropped, self._camera.dropped = self._camera.dropped, 0
            if self.live.takes_frames and self.live.machine.phase is Phase.RUNNING:
                self.live.missed(dropped)
                pixels = await asyncio.to_thread(fitted, frame, size)
                await self.live.push_pixels(SourceFrame(pixels, self.live.buffer.received, None, arrived))

    async def _write(self) -> None:
        try:
            await self.outbox.run()
        except SlowReader:
            self.live.ended = "slow reader"
            await self.live.close()

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

    async def _hang_up(self) -> None:
        """What is left to do when the session has ended."""
        current = asyncio.current_task()
        for task in self._tasks:
            if task is not current:
                task.cancel()
        self.wire.track.stop()
        await self.connection.close()


async def answer(offer: dict[str, Any], hub: Hub, caller: Caller) -> dict[str, str]:
    """The SDP answer to an offer map (`sdp`, and an `init`), its session idle; raises InvalidRequest."""
    init = m.read_init({"prompt": "", **offer.get("init", {}), "type": "init", "commands": True, "lossless": False})
    track = EditedTrack(init.fps or DEFAULT_FPS)
    wire = PeerWire(track)
    outbox = Outbox(wire, hub.settings.stall_seconds)
    live = await prepared(open_session(init, hub, caller, outbox), init)
    connection = RTCPeerConnection(NO_SERVERS)
    Peer(connection, live, outbox, wire).begin()
    try:
        await connection.setRemoteDescription(RTCSessionDescription(offer["sdp"], "offer"))
        await connection.setLocalDescription(await connection.createAnswer())
    except Exception as error:
        # The library raises whatever its parser trips over.
        await live.close()
        raise InvalidRequest(f"the offer cannot be used ({type(error).__name__}: {str(error)[:80]})") from None
    local = connection.localDescription
    return {"type": local.type, "sdp": local.sdp, "session_id": live.id}
