"""What client and server add to a chunk at the production frame size, without a GPU: `python benchmarks/transport.py`.

The real server runs a stand-in whose engines compute nothing, so that all of a chunk's time is its way; then one whose
engines keep one pretended GPU busy for as long as an H200 was measured to, with 1 to 8 live streams.
"""

import argparse
import asyncio
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
from rich.console import Console
from rich.table import Table
from serving import provenance
from streaming import Timing, frames_of, lateness, live, pieces_of, stream

from sana_build.server import Ports, TritonServer
from sana_runtime.geometry import StreamGeometry

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from fakes.stand_in import corners, write_stand_in  # noqa: E402

GEOMETRY = StreamGeometry(704, 1280, 128)
H200 = {
    "vae_encoder": {"first": 0.0756, "steady": 0.0518},
    "denoiser": {"first": 0.1715, "steady": 0.1105},
    "vae_decoder": {"first": 0.0474, "steady": 0.0332},
}
"""Seconds of the engines alone (ADR 10 and 11), BF16."""

CHUNKS, SKIPPED = 13, 3
TRANSPORTS = ("shm", "message")
IN_FLIGHT = (1, 2, 3)
LIVE = (1, 2, 4, 5, 8)
LIVE_SKIPPED = 12
"""Of twice as many chunks: streams that begin together need some seconds to make up for their first chunks."""

FPS = 24.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "transport.json")
    arguments = parser.parse_args()
    console = Console(width=140)
    first, *later = frames_of(GEOMETRY, 4, seed=1)
    chunks = [first, *later * (CHUNKS // 3)]
    with TemporaryDirectory() as folder:
        figures = {
            "about": provenance(),
            "memcpy_of_a_chunk": memcpy(chunks[1]),
            "idle": idle(Path(folder) / "idle", chunks, console),
            "busy": busy(Path(folder) / "busy", chunks, console),
        }
    arguments.output.write_text(json.dumps(figures, indent=1) + "\n")


def memcpy(frames: np.ndarray) -> float:
    """Seconds for copying one chunk into memory that was written before, the measure of everything else here."""
    room = frames.copy()
    times = []
    for _ in range(7):
        began = time.perf_counter()
        np.copyto(room, frames)
        times.append(time.perf_counter() - began)
    return median(times)


def idle(repository: Path, chunks: list[np.ndarray], console: Console) -> dict[str, dict]:
    """The way alone, by transport and chunks in flight."""
    write_stand_in(repository, GEOMETRY)
    found = {}
    with TritonServer(repository, Ports.free(), repository.with_suffix(".log")) as server:
        for transport in TRANSPORTS:
            for in_flight in IN_FLIGHT:
                name = f"{transport}, {in_flight} in flight"
                # The first stream pays for memory that nobody on this machine has used yet.
                for _ in range(2):
                    timing = streamed(server.grpc_url, chunks, in_flight, transport)
                found[name] = asdict(timing)
                show(name, timing, console)
    return found


def busy(repository: Path, chunks: list[np.ndarray], console: Console) -> dict[str, dict]:
    """As if behind the server there were an H200."""
    write_stand_in(repository, GEOMETRY, seconds=H200)
    found, longer = {}, [*chunks, *chunks[2:]]
    with TritonServer(repository, Ports.free(), repository.with_suffix(".log")) as server:
        for in_flight in (1, 3):
            timing = streamed(server.grpc_url, longer, in_flight)
            found[f"{in_flight} in flight"] = asdict(timing)
            show(f"pretended H200, {in_flight} in flight", timing, console)
        for streams in LIVE:
            seconds = asyncio.run(live(server.grpc_url, longer, streams, FPS, LIVE_SKIPPED))
            found[f"{streams} live"] = lateness(seconds, len(chunks[1]) / FPS)
            console.print(f"{streams} live: {found[f'{streams} live']}")
    return found


def streamed(url: str, chunks: list[np.ndarray], in_flight: int, transport: str = "auto") -> Timing:
    """The times of one stream; ends the run if a chunk did not come back as its own edit."""

    def look(frames: np.ndarray) -> np.ndarray:
        return corners(frames[None]).copy()

    timing, found = asyncio.run(stream(url, pieces_of(chunks), in_flight, SKIPPED, look, transport))
    for index, (sent, came) in enumerate(zip(chunks, found, strict=True)):
        if not np.array_equal(came, 255 - look(sent)):
            sys.exit(f"chunk {index} came back as another: no time is reported")
    return timing


def show(name: str, timing: Timing, console: Console) -> None:
    table = Table("per steady chunk, ms", "queue", "computed", "copied", title=name)
    for stage, times in timing.stages.items():
        table.add_row(stage, *(f"{1e3 * value:.1f}" for value in (times.queue, times.compute, times.copy)))
    table.add_row("latency, interval", f"{1e3 * timing.latency:.1f}", f"{1e3 * timing.interval:.1f}", "")
    console.print(table)


if __name__ == "__main__":
    main()
