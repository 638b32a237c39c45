"""Gateways for tests: one in this process in front of a real server, and a client that speaks its protocol."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from sana_client.gateway.app import make_app
from sana_client.gateway.framing import Reader
from sana_client.gateway.hub import Hub
from sana_client.gateway.serve import Server, listen
from sana_client.gateway.settings import Settings

SECONDS = 20
SIZE = 16
"""Of the fake model's frames, which are square."""

REALTIME = "/v1/realtime_video/generate"


@dataclass(frozen=True)
class Gateway:
    """A running gateway."""

    port: int
    hub: Hub
    server: Server

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def drop_connections(self) -> None:
        """Cut every connection off, as a network does."""
        for connection in list(self.server.server_state.connections):
            connection.transport.abort()

    def socket(self, path: str = REALTIME) -> str:
        return f"ws://127.0.0.1:{self.port}{path}"


@asynccontextmanager
async def gateway(folder: Path, triton: str, listen_on: int = 0, **changes: Any) -> AsyncIterator[Gateway]:
    """A gateway, on a free port unless one is named, until the block ends."""
    settings = replace(Settings(folder, triton), **changes)
    app, hub = make_app(settings)
    listening = listen("127.0.0.1", listen_on)
    server = Server(app, hub)
    # Signals belong to the test runner.
    running = asyncio.create_task(server._serve([listening]))
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield Gateway(listening.getsockname()[1], hub, server)
    finally:
        server.should_exit = True
        await running


@dataclass
class Client:
    """Speaks MessagePack and gathers frames; `got` keeps every message that is not about frames."""

    socket: ClientConnection
    reader: Reader = field(default_factory=Reader)
    got: list[dict[str, Any]] = field(default_factory=list)

    async def send(self, found: dict[str, Any]) -> None:
        await self.socket.send(msgspec.msgpack.encode(found))

    async def command(self, name: str, **data: Any) -> None:
        await self.send({"type": name, "data": data})

    async def event(self, kind: str, payload: Any = None, **more: Any) -> None:
        await self.send({"type": "event", "kind": kind, "payload": payload, **more})

    async def frames(self, frames: np.ndarray, **more: Any) -> None:
        """Push uint8 frames (F, H, W, 3) as raw RGB."""
        _, height, width, _ = frames.shape
        await self.event(
            "frame", {"format": "rgb24", "width": width, "height": height, "data": frames.tobytes(), **more}
        )

    async def receive(self) -> tuple[dict[str, Any], np.ndarray | None]:
        """The next message, with its frames if it has any."""
        async with asyncio.timeout(SECONDS):
            while True:
                data = await self.socket.recv()
                if isinstance(data, str):
                    found: tuple[dict[str, Any], np.ndarray | None] | None = (msgspec.json.decode(data), None)
                else:
                    found = self.reader.feed(data)
                if found:
                    if found[1] is None:
                        self.got.append(found[0])
                    return found

    async def until(self, kind: str, **wanted: Any) -> dict[str, Any]:
        """Read until a message of this type whose data holds `wanted`."""
        while True:
            found, frames = await self.receive()
            data = found.get("data", found)
            if frames is None and found["type"] == kind and wanted.items() <= data.items():
                return data

    async def chunk(self) -> tuple[np.ndarray, list[dict[str, Any]], dict[str, Any]]:
        """Frames, headers and statistics of the next chunk."""
        frames, headers = [], []
        while True:
            found, pixels = await self.receive()
            if pixels is not None:
                frames.append(pixels)
                headers.append(found)
            elif found["type"] == "chunk_stats":
                return np.concatenate(frames), headers, found


@asynccontextmanager
async def client(gate: Gateway, path: str = REALTIME, **options: Any) -> AsyncIterator[Client]:
    """A connection to the gateway."""
    async with connect(gate.socket(path), max_size=None, compression=None, **options) as socket:
        yield Client(socket)


def init(prompt: str = "invert", **more: Any) -> dict[str, Any]:
    return {"type": "init", "prompt": prompt, **more}


def source(chunks: int, seed: int = 0) -> np.ndarray:
    """uint8 frames for this many chunks of the fake model."""
    return np.random.default_rng(seed).integers(0, 256, (33 + 24 * (chunks - 1), SIZE, SIZE, 3), np.uint8)


async def closed(talker: Client) -> tuple[int, str]:
    """Read to the end: close code and reason."""
    with suppress(ConnectionClosed):
        while True:
            await talker.receive()
    assert talker.socket.close_code is not None
    return talker.socket.close_code, talker.socket.close_reason or ""
