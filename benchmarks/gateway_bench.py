"""What the gateway's benchmarks share: a gateway over a repository, live viewers, and pictures to send."""

import asyncio
import io
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import psutil
from PIL import Image
from websockets.asyncio.client import ClientConnection, connect

ROOT = Path(__file__).parents[1]
MAIN = "from sana_client.gateway.cli import main; main()"
REALTIME = "/v1/realtime_video/generate"


@contextmanager
def repository(given: Path | None, streams: int) -> Iterator[Path]:
    """The given repository, or the test suite's smallest real model, built for the block."""
    if given:
        yield given
        return
    sys.path.insert(0, str(ROOT / "tests"))
    from micro import build_micro

    with tempfile.TemporaryDirectory() as folder:
        build_micro(Path(folder) / "micro", streams)
        yield Path(folder) / "micro"


@contextmanager
def gateway(
    repository: Path, *options: str, prefix: tuple[str, ...] = (), **spawn: Any
) -> Iterator[tuple[psutil.Process, str]]:
    """A gateway with its model server and its address; `prefix` is a command that starts it."""
    command = [*prefix, sys.executable, "-c", MAIN, "up", str(repository), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, **spawn) as process:
        try:
            assert process.stdout
            yield psutil.Process(process.pid), process.stdout.readline().split()[1]
        finally:
            process.terminate()


def pictures(width: int, height: int) -> list[bytes]:
    """A second of moving noise as JPEG files."""
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 256, (max(1, height // 8), max(1, width // 8), 3), np.uint8) for _ in range(24)]
    found = []
    for pixels in coarse:
        data = io.BytesIO()
        Image.fromarray(pixels).resize((width, height)).save(data, "JPEG", quality=90)
        found.append(data.getvalue())
    return found


async def card(address: str) -> dict[str, Any]:
    """What the gateway says of its model."""
    async with httpx.AsyncClient(base_url=address) as http:
        return (await http.get("/v1/models")).json()["data"][0]


@asynccontextmanager
async def streaming(
    address: str, frames: list[bytes], fps: float, until: float, **options: Any
) -> AsyncIterator[ClientConnection]:
    """A session to which JPEG frames are sent at their pace until the time is up."""
    socket_address = address.replace("http", "ws").rstrip("/") + REALTIME
    async with connect(socket_address, max_size=None, compression=None, **options) as socket:
        opening = {"type": "init", "prompt": "make it red", "realtime_output_format": "jpeg", "fps": round(fps)}
        await socket.send(msgspec.msgpack.encode(opening))
        sender = asyncio.create_task(_send(socket, frames, fps, until))
        try:
            yield socket
        finally:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)


async def _send(socket: ClientConnection, frames: list[bytes], fps: float, until: float) -> None:
    due, number = time.monotonic(), 0
    while (now := time.monotonic()) < until:
        payload = {"data": frames[number % len(frames)], "number": number, "captured_ms": now * 1e3}
        await socket.send(msgspec.msgpack.encode({"type": "event", "kind": "frame", "payload": payload}))
        number += 1
        due += 1 / fps
        await asyncio.sleep(due - time.monotonic())
    await socket.send(msgspec.msgpack.encode({"type": "event", "kind": "end"}))
