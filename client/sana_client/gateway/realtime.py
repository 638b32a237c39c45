"""The WebSocket endpoint: an init or a command opens a session, then frames, events and commands flow both ways."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect

from sana_client.errors import ClientError
from sana_client.gateway import messages as m
from sana_client.gateway.access import SUBPROTOCOL, Caller
from sana_client.gateway.alive import SILENT
from sana_client.gateway.audience import Outbox, OutChunk, SlowReader
from sana_client.gateway.hub import Hub
from sana_client.gateway.keepalive import HOLDS_SLOT
from sana_client.gateway.live import LiveSession
from sana_client.gateway.opening import open_session, prepared
from sana_client.gateway.refusals import Full, InvalidRequest, NotFound

NORMAL, REFUSED, FAILED = 1000, 1008, 1011
CLOSES = {
    "complete": (NORMAL, "generation complete"),
    "full": (REFUSED, ""),
    "over limit": (REFUSED, ""),
    "slow reader": (REFUSED, "too slow"),
    "failed": (FAILED, ""),
}
"""How a socket is closed whose session has ended by itself, by the reason."""


@dataclass
class SocketWire:
    """Writes to a WebSocket; small messages as JSON text for clients that speak it."""

    socket: WebSocket
    text: bool = False
    packs: bool = True

    async def map(self, found: dict[str, Any]) -> None:
        if self.text:
            await self.socket.send_text(msgspec.json.encode(found).decode())
        else:
            await self.socket.send_bytes(msgspec.msgpack.encode(found))

    async def chunk(self, chunk: OutChunk) -> None:
        for message in chunk.packed.messages:
            await self.socket.send_bytes(message)


async def realtime(socket: WebSocket, hub: Hub, caller: Caller) -> None:
    """One connection from its first message to its last."""
    await socket.accept(subprotocol=_subprotocol(socket))
    wire = SocketWire(socket)
    # A client that left or does not read cannot be told anything; the session's audit line says which.
    with suppress(WebSocketDisconnect, SlowReader):
        await _connection(socket, wire, hub, caller)


def _subprotocol(socket: WebSocket) -> str | None:
    return SUBPROTOCOL if SUBPROTOCOL in socket.scope.get("subprotocols", ()) else None


async def _connection(socket: WebSocket, wire: SocketWire, hub: Hub, caller: Caller) -> None:
    outbox = Outbox(wire, hub.settings.stall_seconds, hub.metrics.steps.labels("written").observe)
    live, first = await _opened(socket, wire, hub, caller, outbox)
    connection = Connection(socket, live, outbox)
    socket.scope["extensions"][HOLDS_SLOT] = lambda: live.running is not None
    live.open()
    try:
        if isinstance(first, m.Init) and not first.commands:
            live.start(first.wait)
            live.on_end(connection.finish)
        await _first_of(connection.listen(first), outbox.run())
        await socket.close(*CLOSES[live.ended])
    except SlowReader:
        live.ended = "slow reader"
        raise
    except WebSocketDisconnect as gone:
        live.ended = SILENT if gone.reason == SILENT else live.ended
        raise
    finally:
        await live.close()


async def _first_of(*work: Coroutine[Any, Any, None]) -> None:
    """Run until one of them ends, then stop the others; raises what it raised."""
    tasks = [asyncio.create_task(part) for part in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def receive(socket: WebSocket) -> bytes | str:
    """The next message; raises WebSocketDisconnect."""
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", NORMAL), message.get("reason"))
    data: bytes | str | None = message.get("bytes")
    return message["text"] if data is None else data


First = m.Init | tuple[str, msgspec.Struct]


async def _opened(
    socket: WebSocket, wire: SocketWire, hub: Hub, caller: Caller, outbox: Outbox
) -> tuple[LiveSession, First]:
    """The session that the first acceptable message opens; others are answered and the socket stays open."""
    while True:
        data = await receive(socket)
        try:
            found = m.decode_map(data)
            if m.is_command(found):
                first: First = m.read_command(found)
                wire.text = isinstance(data, str)
                return open_session(m.Init(prompt="", commands=True), hub, caller, outbox), first
            if isinstance(data, str):
                raise InvalidRequest("an init comes as a binary MessagePack message")
            init = m.read_init(found)
            return await prepared(open_session(init, hub, caller, outbox), init), init
        except ClientError as error:
            hub.metrics.refused.labels("init").inc()
            await wire.map(m.error_message("invalid generate request", str(error)))


@dataclass
class Connection:
    """The two directions of an open session."""

    socket: WebSocket
    live: LiveSession
    outbox: Outbox

    async def listen(self, first: First) -> None:
        """Take messages for ever; raises WebSocketDisconnect when the client goes."""
        if not isinstance(first, m.Init):
            await self.live.command(*first)
        while True:
            data = await receive(self.socket)
            try:
                await self._take(m.decode_map(data))
            except SlowReader:
                raise
            except ClientError as error:
                self.live.hub.metrics.refused.labels("event").inc()
                self.outbox.post(m.error_message("invalid event", str(error)))

    async def _take(self, found: dict[str, Any]) -> None:
        if m.is_command(found):
            await self.live.command(*m.read_command(found))
        elif found.get("type") == "event":
            event = m.read_event(found)
            if event.kind not in EVENTS:
                raise InvalidRequest(f"unknown event {event.kind!r:.40}: this model takes {', '.join(EVENTS)}")
            await EVENTS[event.kind](self.live, event)
        else:
            raise InvalidRequest(f"a session takes events and commands, not {found.get('type')!r:.40}")

    def finish(self) -> None:
        """Tell how the only run ended, and let the writer end after that."""
        if self.live.error:
            self.outbox.post(_ending(self.live.error, self.live.hub.public(self.live.error)))
        self.outbox.finish()


def _ending(error: ClientError, text: str) -> dict[str, Any]:
    if isinstance(error, Full):
        return m.error_message("another realtime session is already active", text, ahead=error.ahead)
    return m.error_message(f"error during generate loop: {text.partition(chr(10))[0]}")


async def _prompt_event(live: LiveSession, event: m.Event) -> None:
    if not isinstance(event.payload, str):
        raise InvalidRequest("the payload of a prompt event is a string")
    live.obey_now("set_prompt", m.SetPrompt(event.payload, event.event_id))


async def _frame_event(live: LiveSession, event: m.Event) -> None:
    await live.push(m.read_frame(event.payload))


async def _end_event(live: LiveSession, event: m.Event) -> None:
    live.finish()


EVENTS: dict[str, Callable[[LiveSession, m.Event], Coroutine[Any, Any, None]]] = {
    "prompt": _prompt_event,
    "frame": _frame_event,
    "end": _end_event,
}


async def watch(socket: WebSocket, hub: Hub, caller: Caller) -> None:
    """Show a session that somebody else drives, from its next chunk on."""
    await socket.accept(subprotocol=_subprotocol(socket))
    wire = SocketWire(socket)
    live = hub.sessions.get(socket.path_params["session_id"])
    if live is None or len(live.audience) >= hub.settings.spectators:
        error = NotFound("there is no such session, or it has all the spectators it may have")
        await wire.map(m.error_message("session not available", str(error)))
        await socket.close(REFUSED)
        return
    outbox = Outbox(wire, hub.settings.stall_seconds)
    live.audience.join(outbox)
    outbox.post({"type": "state", "data": live.machine.state().data})
    try:
        with suppress(WebSocketDisconnect, SlowReader):
            await _first_of(outbox.run(), _until_gone(socket))
            await socket.close(NORMAL)
    finally:
        live.audience.leave(outbox)


async def _until_gone(socket: WebSocket) -> None:
    """Take and forget whatever comes; raises WebSocketDisconnect at the end."""
    while True:
        await receive(socket)
