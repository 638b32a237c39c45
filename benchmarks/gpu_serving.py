"""A repository for a data-centre GPU behind the real Triton server: `python benchmarks/gpu_serving.py REPO`.

First the stages alone in this process, then the same chunks through the server, which must give the same frames before
any time is printed; then 1, 2, 4 and 8 live streams that each send 24 frames a second.
"""

import argparse
import asyncio
import json
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np
from rich.console import Console
from rich.table import Table

from sana_build.plan import STAGES
from sana_build.server import Ports, TritonServer
from sana_client.pipeline import Piece, edit
from sana_client.session import Limits, connect
from sana_client.stats import between, stage_times
from sana_runtime.geometry import StreamGeometry
from sana_runtime.manifest import Manifest
from sana_runtime.stages import Request
from sana_runtime.triton_backend import load_stage

ROOT = Path(__file__).parents[1]
PROMPT = "Turn the scene into a warm watercolor painting"
CHUNKS = 12
LIVE_CHUNKS = 16
LIVE = (1, 2, 4, 8)
SKIPPED = 6
"""Chunks before the medians begin: they fill the window, and every new number of past chunks is captured once."""

EQUAL_DB = 45.0
"""PSNR above which served frames count as those of the stages alone: rounding may differ between two runs."""


@dataclass(frozen=True)
class Lane:
    """One live stream: seconds from each chunk's sending to its answer, and how many came before the next was due."""

    latencies: list[float]
    in_time: int


def frames_of(geometry: StreamGeometry, count: int, seed: int) -> list[np.ndarray]:
    """Chunks of a moving pattern, uint8 (F, H, W, 3)."""
    y, x = np.mgrid[: geometry.height, : geometry.width]
    sizes = [geometry.chunk(index).frames for index in range(count)]
    base = np.stack([(x + y) % 256, (2 * x + 31 * seed) % 256, (x // 2 + 3 * y) % 256], -1).astype(np.uint8)
    video = (np.roll(base, 5 * frame, axis=1) for frame in range(sum(sizes)))
    return [np.stack([next(video) for _ in range(size)]) for size in sizes]


def pieces_of(chunks: Sequence[np.ndarray]) -> list[Piece]:
    return [Piece(index, frames, PROMPT, index == len(chunks) - 1) for index, frames in enumerate(chunks)]


def alone(repository: Path, pieces: Sequence[Piece]) -> tuple[dict[str, float], list[np.ndarray]]:
    """Median seconds of every stage in this process, and the edited frames of every chunk."""
    stages = {name: load_stage(name, repository, "1") for name in STAGES}
    seconds: dict[str, list[float]] = {name: [] for name in STAGES}
    edited = []
    for piece in pieces:
        tensors = {"frames": piece.frames[None], "prompt": np.frombuffer(piece.prompt.encode(), np.uint8)[None]}
        for name, stage in stages.items():
            asked = Request(tensors, {"chunk": piece.index}, "bench", start=piece.index == 0, end=piece.last)
            started = time.perf_counter()
            tensors = tensors | stage.run(asked)
            seconds[name].append(time.perf_counter() - started)
        edited.append(tensors["edited"][0].copy())
    return {name: median(values[SKIPPED:-1]) for name, values in seconds.items()}, edited


async def stream(url: str, pieces: Sequence[Piece], in_flight: int) -> tuple[dict[str, float], list[np.ndarray]]:
    """As fast as the server answers: seconds per chunk of every stage and between answers, and the edited frames."""

    async def source() -> AsyncIterator[Piece]:
        for piece in pieces:
            yield piece

    edited, arrivals, latencies = [], [], []
    async with connect(url, limits=Limits(in_flight=in_flight)) as session:
        async for _, answer in edit(session, source()):
            if len(edited) == SKIPPED:
                before = stage_times(await session.statistics(), session.info.stages)
            edited.append(answer.frames)
            arrivals.append(time.perf_counter())
            latencies.append(answer.seconds)
        after = stage_times(await session.statistics(), session.info.stages)
    found = {name: stage.compute / max(stage.requests, 1) for name, stage in between(before, after).items()}
    found["latency"] = median(latencies[SKIPPED:-1])
    found["interval"] = median(np.diff(arrivals)[SKIPPED:-1])
    return found, edited


async def live(url: str, chunks: Sequence[np.ndarray], streams: int, fps: float) -> list[Lane]:
    """So many streams at once, each sending its next chunk when the camera would have its frames."""

    async def lane(number: int) -> Lane:
        async def camera() -> AsyncIterator[Piece]:
            await asyncio.sleep(number / streams)
            due = time.perf_counter()
            for piece in pieces_of(chunks):
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                due += len(chunks[1]) / fps
                yield piece

        latencies = []
        async with connect(url, limits=Limits(in_flight=4)) as session:
            async for _, answer in edit(session, camera()):
                latencies.append(answer.seconds)
        steady = latencies[SKIPPED:]
        return Lane(steady, sum(seconds <= len(chunks[1]) / fps for seconds in steady))

    return list(await asyncio.gather(*(lane(number) for number in range(streams))))


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2) / 255**2
    return float(-10 * np.log10(max(float(error), 1e-10)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repository", type=Path)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "gpu_serving.json")
    arguments = parser.parse_args()
    console = Console(width=140)
    manifest = Manifest.read(arguments.repository)
    chunks = frames_of(manifest.geometry, LIVE_CHUNKS, seed=1)
    pieces = pieces_of(chunks[:CHUNKS])
    # In a process of its own, which gives its memory back to the server.
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        stages, wanted = process.submit(alone, arguments.repository, pieces).result()
    console.print(f"stages alone: {sum(stages.values()) * 1e3:.1f} ms per chunk, {stages}")
    with TritonServer(arguments.repository, Ports.free(), Path("gpu-serving.log"), gpu=True) as server:
        one, edited = asyncio.run(stream(server.grpc_url, pieces, 1))
        two, _ = asyncio.run(stream(server.grpc_url, pieces, 3))
        worst = min(psnr(a, b) for a, b in zip(edited, wanted, strict=True))
        if worst < EQUAL_DB:
            raise SystemExit(f"served frames are {worst:.1f} dB from those of the stages alone: no time is reported")
        lanes = {count: asyncio.run(live(server.grpc_url, chunks, count, 24.0)) for count in LIVE}
    figures = {
        "about": about(manifest),
        "psnr_to_stages_alone": worst,
        "stages_alone": stages,
        "one_in_flight": one,
        "three_in_flight": two,
        "frames_per_second": len(chunks[1]) / two["interval"],
        "outside_engines": 1 - sum(stages.values()) / one["latency"],
        "live": {count: _lanes(found) for count, found in lanes.items()},
    }
    arguments.output.write_text(json.dumps(figures, indent=1) + "\n")
    show(figures, console)


def _lanes(lanes: Sequence[Lane]) -> dict[str, float]:
    every = np.array([seconds for lane in lanes for seconds in lane.latencies])
    return {
        "p50": float(np.percentile(every, 50)),
        "p99": float(np.percentile(every, 99)),
        "in_time": sum(lane.in_time for lane in lanes) / len(every),
    }


def about(manifest: Manifest) -> dict[str, object]:
    import torch

    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "gpu": torch.cuda.get_device_name(),
        "model": manifest.model,
        "policy": manifest.policy,
        "checkpoint": manifest.checkpoint,
        "versions": manifest.versions,
        "commit": commit.stdout.strip() or "unknown",
    }


def show(figures: dict, console: Console) -> None:
    table = Table("per steady chunk, ms", "alone", "served, 1 in flight", "served, 3 in flight", title="one stream")
    for name, seconds in figures["stages_alone"].items():
        row = (figures["one_in_flight"].get(name, 0.0), figures["three_in_flight"].get(name, 0.0))
        table.add_row(name, *(f"{1e3 * value:.1f}" for value in (seconds, *row)))
    table.add_row(
        "latency", "", *(f"{1e3 * figures[key]['latency']:.1f}" for key in ("one_in_flight", "three_in_flight"))
    )
    console.print(table)
    console.print(
        f"{figures['frames_per_second']:.1f} frames per second, {figures['outside_engines']:.1%} outside engines"
    )
    table = Table("live streams at 24 FPS", "p50 ms", "p99 ms", "answered before the next chunk")
    for count, row in figures["live"].items():
        table.add_row(str(count), f"{1e3 * row['p50']:.0f}", f"{1e3 * row['p99']:.0f}", f"{row['in_time']:.1%}")
    console.print(table)


if __name__ == "__main__":
    main()
