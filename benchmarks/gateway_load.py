"""Several live viewers on one gateway: order, lag, deadlines, memory, and what the gateway adds to a chunk.

    python benchmarks/gateway_load.py --sessions 8 --seconds 600 --fps 24

Every session sends JPEG frames at its own pace in real time and checks that each chunk follows the one before it.
Without a repository it serves the test suite's smallest real model; another one must have as many streams as there
are sessions.
"""

import argparse
import asyncio
import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from gateway_bench import card, gateway, pictures, repository, streaming
from websockets.asyncio.client import ClientConnection

from sana_client.gateway.framing import Reader
from sana_client.gateway.pacing import Cadence
from sana_runtime.regions import PREFIX

RESULTS = Path(__file__).parent / "results" / "gateway_load.json"
OVERHEAD = {"gathering": "request_prepare_ms", "encoding": "raw_payload_build_ms", "writing": "ws_write_ms"}
SETTLED = 0.2
"""Share of the run after which memory is compared: pools and caches have filled by then."""


@dataclass
class Viewer:
    """What one session saw; times in seconds unless the name says milliseconds."""

    cadence: Cadence
    frames: int = 0
    dropped: int = 0
    out_of_order: int = 0
    lags: list[float] = field(default_factory=list)
    overheads_ms: list[list[int]] = field(default_factory=list)


async def view(address: str, frames: list[bytes], fps: float, start: float, until: float) -> Viewer:
    """One session, from `start` seconds on until the time is up."""
    await asyncio.sleep(start)
    viewer = Viewer(Cadence(fps, time.monotonic))
    async with streaming(address, frames, fps, until) as socket:
        await _watch(socket, viewer)
    return viewer


async def _watch(socket: ClientConnection, viewer: Viewer) -> None:
    reader, captured, chunk = Reader(), -1.0, 0
    async for message in socket:
        assert isinstance(message, bytes)
        found, pixels = reader.feed(message) or ({}, None)
        if pixels is not None:
            times = found["captured_ms"]
            ordered = sorted(times) == list(times) and times[0] > captured
            viewer.out_of_order += not (
                ordered and found["frame_number"] == viewer.frames and found["chunk_index"] == chunk
            )
            captured = times[-1]
            viewer.frames += len(pixels)
        elif found.get("type") == "chunk_stats":
            viewer.lags.append(time.monotonic() - captured / 1e3)
            viewer.overheads_ms.append([found[name] for name in OVERHEAD.values()])
            viewer.dropped = found["frames_dropped"]
            viewer.cadence.delivered(found["num_frames"])
            chunk += 1
        elif found.get("type") == "error":
            sys.exit(f"a session failed: {found}")


def megabytes(family: list[psutil.Process]) -> float:
    return round(sum(process.memory_info().rss for process in family if process.is_running()) / 1e6, 1)


def regions() -> int:
    return len(list(Path("/dev/shm").glob(f"{PREFIX}*")))


async def sample(root: psutil.Process, until: float) -> list[dict[str, float]]:
    """Memory of the gateway and of the model server, and shared memory regions, every few seconds."""
    found = []
    while time.monotonic() < until:
        rest = root.children(recursive=True)
        found.append({"gateway_mb": megabytes([root]), "server_mb": megabytes(rest), "regions": regions()})
        await asyncio.sleep(5)
    return found


async def measure(root: psutil.Process, address: str, sessions: int, seconds: float, fps: float) -> dict[str, object]:
    model = await card(address)
    frames, chunk = pictures(model["width"], model["height"]), model["steady_frames"]
    until = time.monotonic() + seconds
    sampling = asyncio.create_task(sample(root, until))
    # Viewers do not come at the same moment, and chunks that all end together would only measure each other.
    starts = [number * chunk / (fps * sessions) for number in range(sessions)]
    viewers = await asyncio.gather(*(view(address, frames, fps, start, until) for start in starts))
    return figures(viewers, await sampling)


def percentiles(values: np.ndarray) -> dict[str, float]:
    return {f"p{rank}": round(float(np.percentile(values, rank)), 3) for rank in (50, 95, 99)}


def figures(viewers: list[Viewer], samples: list[dict[str, float]]) -> dict[str, object]:
    chunks = sum(viewer.cadence.chunks for viewer in viewers)
    early, late = samples[int(len(samples) * SETTLED)], samples[-1]
    overheads = np.concatenate([viewer.overheads_ms for viewer in viewers])
    steps = dict(zip(OVERHEAD, overheads.T, strict=True)) | {"all": overheads.sum(1)}
    lags = np.concatenate([viewer.lags for viewer in viewers])
    return {
        "chunks": chunks,
        "frames": sum(viewer.frames for viewer in viewers),
        "frames_dropped_at_the_edge": sum(viewer.dropped for viewer in viewers),
        "out_of_order": sum(viewer.out_of_order for viewer in viewers),
        "deadlines_met": round(1 - sum(viewer.cadence.underruns for viewer in viewers) / chunks, 4),
        "underrun_seconds": round(sum(viewer.cadence.stalled for viewer in viewers), 3),
        "newest_frame_lag_seconds": percentiles(lags),
        "gateway_overhead_ms": {step: percentiles(values) for step, values in steps.items()},
        "memory_after_a_fifth": early,
        "memory_at_the_end": late,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path, nargs="?")
    parser.add_argument("--sessions", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--fps", type=float, default=24)
    parser.add_argument("--record", type=Path, default=RESULTS)
    options = parser.parse_args()
    with repository(options.repository, options.sessions) as folder, gateway(folder) as (root, address):
        found = asyncio.run(measure(root, address, options.sessions, options.seconds, options.fps))
        manifest = json.loads((folder / "manifest.json").read_text())
    setting = {"model": manifest["model"], "sessions": options.sessions, "seconds": options.seconds, "fps": options.fps}
    machine = {"cores": os.cpu_count(), "load_average": round(os.getloadavg()[0], 2), "niceness": os.nice(0)}
    record = setting | machine | found
    options.record.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
