"""What happens to live sessions when something dies, stalls, falls silent or runs full, and what is left afterwards.

    python benchmarks/gateway_chaos.py

Two bystanders stream all the while. Each case reports when the victim's slot was free, the longest time that a
bystander waited for a chunk, how often one was told that its session is over, and when it was edited again.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
from gateway_bench import ROOT, card, gateway, pictures, repository, streaming
from websockets.exceptions import ConnectionClosed, InvalidHandshake

RESULTS = Path(__file__).parent / "results" / "gateway_chaos.json"
CLIP = ROOT / "assets" / "big-buck-bunny.mp4"
PEER = ROOT / "tests" / "gateway" / "peers.py"
BYSTANDERS = 2
FPS = 24.0
SETTLE = 3.0
PATIENCE = 40.0
SMALL_DISK = 8 * 2**20
REGIONS = Path("/dev/shm")


@dataclass
class Bystander:
    """A viewer who comes back whenever the session ends; times on the monotonic clock."""

    chunks: list[float] = field(default_factory=list)
    interrupted: int = 0
    told: int = 0

    async def stream(self, address: str, frames: list[bytes]) -> None:
        """Stream for ever."""
        while True:
            seen = len(self.chunks)
            told = False
            with suppress(ConnectionClosed, InvalidHandshake, OSError):
                async with streaming(address, frames, FPS, float("inf")) as socket:
                    told = await self._watch(socket)
            # Attempts that come too early are not interruptions.
            self.interrupted += len(self.chunks) > seen
            self.told += told and len(self.chunks) > seen
            await asyncio.sleep(0.1)

    async def _watch(self, socket: Any) -> bool:
        """Count chunks until the session ends; whether its end was told."""
        async for message in socket:
            kind = msgspec.msgpack.decode(message)["type"]
            if kind == "chunk_stats":
                self.chunks.append(time.monotonic())
            elif kind == "error":
                return True
        return False

    def longest_wait(self, since: float) -> float:
        """Seconds between two chunks, at most, from `since` on."""
        times = [since, *(moment for moment in self.chunks if moment > since), time.monotonic()]
        return max(after - before for before, after in pairwise(times))


@dataclass
class Scene:
    """A gateway with its bystanders, and what a case needs to hurt somebody."""

    root: psutil.Process
    address: str
    frames: list[bytes]
    folder: Path
    bystanders: list[Bystander] = field(default_factory=list)

    async def active(self) -> int:
        """Slots that are taken, -1 while the gateway does not answer."""
        try:
            async with httpx.AsyncClient(base_url=self.address) as http:
                lines = (await http.get("/metrics")).text.splitlines()
        except httpx.HTTPError:
            return -1
        return next(int(float(line.split()[1])) for line in lines if line.startswith("sana_streams_active "))

    async def until_active(self, count: int) -> float:
        """Wait for this many taken slots; seconds that it took."""
        began = time.monotonic()
        while await self.active() != count:
            if time.monotonic() - began > PATIENCE:
                raise TimeoutError(f"{await self.active()} slots are taken, not {count}, after {PATIENCE:.0f} s")
            await asyncio.sleep(0.02)
        return time.monotonic() - began

    def process(self, name: str) -> psutil.Process:
        return next(child for child in self.root.children(recursive=True) if name in child.name())


Case = Callable[[Scene], Awaitable[dict[str, Any]]]


@asynccontextmanager
async def victim(scene: Scene, *command: str | Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process of its own that streams, once its slot is taken."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, *map(str, command), scene.address, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout
        await process.stdout.readline()
        await scene.until_active(BYSTANDERS + 1)
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _killed(scene: Scene, *command: str | Path) -> dict[str, Any]:
    async with victim(scene, *command) as process:
        process.kill()
        return {"slot_free_seconds": await scene.until_active(BYSTANDERS)}


async def killed_client(scene: Scene) -> dict[str, Any]:
    """kill -9 of a client on a WebSocket."""
    return await _killed(scene, __file__, "--stream")


async def killed_peer(scene: Scene) -> dict[str, Any]:
    """kill -9 of a client on WebRTC."""
    return await _killed(scene, PEER)


async def stalled_reader(scene: Scene) -> dict[str, Any]:
    """A client that goes on sending and stops reading."""
    async with streaming(scene.address, scene.frames, FPS, float("inf"), max_queue=1, write_limit=2**16) as socket:
        await scene.until_active(BYSTANDERS + 1)
        socket.transport.pause_reading()
        freed = await scene.until_active(BYSTANDERS)
        socket.transport.abort()
    return {"slot_free_seconds": freed}


async def silent_path(scene: Scene) -> dict[str, Any]:
    """A connection whose other end is still there but passes nothing on, in either direction."""
    frozen = asyncio.Event()
    pumps: list[asyncio.Task[None]] = []
    target = httpx.URL(scene.address)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not frozen.is_set() and (data := await reader.read(65536)):
            if frozen.is_set():
                break
            writer.write(data)
            await writer.drain()
        await asyncio.Event().wait()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward, back = await asyncio.open_connection(target.host, target.port)
        pumps.extend((asyncio.create_task(pump(reader, back)), asyncio.create_task(pump(onward, writer))))

    proxy = await asyncio.start_server(forward, "127.0.0.1", 0)
    port = proxy.sockets[0].getsockname()[1]
    async with streaming(f"http://127.0.0.1:{port}", scene.frames, FPS, float("inf"), close_timeout=0) as socket:
        await scene.until_active(BYSTANDERS + 1)
        frozen.set()
        freed = await scene.until_active(BYSTANDERS)
        socket.transport.abort()
    for each in pumps:
        each.cancel()
    proxy.close()
    return {"slot_free_seconds": freed}


async def _back(scene: Scene) -> dict[str, Any]:
    """Seconds until every bystander is edited again."""
    began = time.monotonic()
    while not all(each.interrupted and each.chunks[-1] > began + 1 / FPS for each in scene.bystanders):
        if time.monotonic() - began > PATIENCE:
            raise TimeoutError(f"the bystanders are not edited again after {PATIENCE:.0f} s")
        await asyncio.sleep(0.05)
    return {"edited_again_seconds": min(each.chunks[-1] for each in scene.bystanders) - began}


async def killed_stub(scene: Scene) -> dict[str, Any]:
    """kill -9 of one model's Python process."""
    os.kill(scene.process("triton_python").pid, signal.SIGKILL)
    return await _back(scene)


async def killed_server(scene: Scene) -> dict[str, Any]:
    """kill -9 of tritonserver."""
    os.kill(scene.process("tritonserver").pid, signal.SIGKILL)
    return await _back(scene)


async def full_disk(scene: Scene) -> dict[str, Any]:
    """No room under /v1/videos: an upload that does not fit, and one that fits while its result does not."""
    data = CLIP.read_bytes()
    async with httpx.AsyncClient(base_url=scene.address, timeout=PATIENCE) as http:
        refused = await http.post("/v1/uploads", content=data + bytes(SMALL_DISK))
        filler = scene.folder / "filler"
        upload = (await http.post("/v1/uploads", content=data)).json()
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(4096)):
                pass
        job = (await http.post("/v1/videos", json={"prompt": "x", "video": {"uploadId": upload["uploadId"]}})).json()
        while job["status"] in ("queued", "in_progress"):
            await asyncio.sleep(0.1)
            job = (await http.get(f"/v1/videos/{job['id']}")).json()
        filler.unlink()
        after = await http.post("/v1/uploads", content=data)
    kept = [path.name.partition("-")[0] for path in scene.folder.glob("sana-gateway-*/*-*")]
    return {
        "upload": refused.json()["error"]["message"],
        "job": job["error"]["message"],
        "upload_when_there_is_room_again": after.status_code,
        "uploads_kept": kept.count("upload"),
        "results_kept": kept.count("job"),
    }


CASES: dict[str, Case] = {
    "client_killed": killed_client,
    "webrtc_client_killed": killed_peer,
    "reader_stalled": stalled_reader,
    "path_silent": silent_path,
    "python_stub_killed": killed_stub,
    "tritonserver_killed": killed_server,
    "disk_full": full_disk,
}


@asynccontextmanager
async def streams(scene: Scene) -> AsyncIterator[None]:
    """Bystanders for the block, undisturbed when it begins."""
    scene.bystanders = [Bystander() for _ in range(BYSTANDERS)]
    tasks = [asyncio.create_task(each.stream(scene.address, scene.frames)) for each in scene.bystanders]
    try:
        await scene.until_active(BYSTANDERS)
        await asyncio.sleep(SETTLE)
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def play(case: Case, scene: Scene) -> dict[str, Any]:
    """One case, and what the bystanders noticed of it."""
    async with streams(scene):
        began = time.monotonic()
        found = await case(scene)
        await asyncio.sleep(SETTLE)
        waits = [each.longest_wait(began) for each in scene.bystanders]
    await scene.until_active(0)
    return rounded(found) | {
        "bystanders_interrupted": sum(each.interrupted for each in scene.bystanders),
        "of_these_told_why": sum(each.told for each in scene.bystanders),
        "bystanders_longest_wait_seconds": round(max(waits), 2),
    }


def rounded(found: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 2) if isinstance(value, float) else value for name, value in found.items()}


def regions(processes: list[psutil.Process]) -> set[str]:
    """Shared memory that these processes have mapped."""
    found: set[str] = set()
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            found |= {Path(entry.path).name for entry in process.memory_maps() if entry.path.startswith(f"{REGIONS}/")}
    return found


def left(processes: list[psutil.Process], shared: set[str], folder: Path) -> dict[str, Any]:
    """What of a gateway that has ended is still there, after the time that its parts take to notice."""
    remaining = psutil.wait_procs(processes, PATIENCE)[1]
    return {
        "processes": [process.name() for process in remaining],
        "regions": sorted(name for name in shared if (REGIONS / name).exists()),
        "files": sorted(path.name for path in folder.iterdir()),
    }


async def play_all(scene: Scene, names: list[str]) -> dict[str, Any]:
    found = {}
    for name in names:
        found[name] = await play(CASES[name], scene)
        print(name, json.dumps(found[name]), flush=True)
    return found


async def end(repository: Path, scene: Scene, way: signal.Signals) -> dict[str, Any]:
    """The gateway ends while the bystanders stream, and comes back at the same address after a look at what is left."""
    async with streams(scene):
        processes = [scene.root, *scene.root.children(recursive=True)]
        shared = regions(processes)
        scene.root.send_signal(way)
        began = time.monotonic()
        await asyncio.to_thread(scene.root.wait, PATIENCE)
        ended = time.monotonic() - began
        remaining = await asyncio.to_thread(left, processes, shared, scene.folder)
        cleared = time.monotonic() - began
        port = str(httpx.URL(scene.address).port)
        again = gateway(repository, "--port", port)
        await asyncio.to_thread(again.__enter__)
        try:
            back = await _back(scene)
        finally:
            await asyncio.to_thread(again.__exit__, None, None, None)
    return rounded({"ended_seconds": ended, "everything_gone_seconds": cleared, "left": remaining} | back)


def on_a_gateway(repository: Path, names: list[str], way: signal.Signals) -> dict[str, Any]:
    """Some cases on one gateway, and then its end."""
    with tempfile.TemporaryDirectory() as temporary:
        environment = {**os.environ, "TMPDIR": temporary}
        with gateway(repository, env=environment) as (root, address):
            scene = Scene(root, address, asyncio.run(sources(address)), Path(temporary))
            found = asyncio.run(play_all(scene, names))
            return found | {f"gateway_{way.name.lower()}": asyncio.run(end(repository, scene, way))}


def on_a_small_disk(repository: Path) -> dict[str, Any]:
    """The case that needs a disk of its own: a mount that only the gateway sees, and that ends with it."""
    with tempfile.TemporaryDirectory() as temporary:
        mount = f'mount -t tmpfs -o size={SMALL_DISK} none "$0" && exec "$@"'
        prefix = ("unshare", "--mount", "--map-root-user", "sh", "-c", mount, temporary)
        environment = {**os.environ, "TMPDIR": temporary}
        with gateway(repository, prefix=prefix, env=environment) as (root, address):
            inside = Path(f"/proc/{root.pid}/root{temporary}")
            scene = Scene(root, address, asyncio.run(sources(address)), inside)
            return asyncio.run(play_all(scene, ["disk_full"]))


async def sources(address: str) -> list[bytes]:
    model = await card(address)
    return pictures(model["width"], model["height"])


async def stream_for_ever(address: str) -> None:
    async with streaming(address, await sources(address), FPS, float("inf")) as socket:
        async for message in socket:
            print(msgspec.msgpack.decode(message)["type"], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path, nargs="?")
    parser.add_argument("--record", type=Path, default=RESULTS)
    parser.add_argument("--stream", metavar="ADDRESS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stream:
        asyncio.run(stream_for_ever(options.stream))
        return
    with repository(options.repository, BYSTANDERS + 1) as folder:
        found = on_a_gateway(folder, [name for name in CASES if name != "disk_full"], signal.SIGKILL)
        found |= on_a_gateway(folder, [], signal.SIGTERM) | on_a_small_disk(folder)
    record = {"cores": os.cpu_count(), "load_average": round(os.getloadavg()[0], 2)} | found
    options.record.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
