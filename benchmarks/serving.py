"""What the server and the client add to the stages: `make bench`.

The stages of a built repository run one after the other in this process, then the same chunks go through the real
server with one and with two chunks in flight. Frames must be equal before any time is printed.
"""

import asyncio
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from records import commit
from rich.console import Console
from rich.table import Table
from streaming import stream

from sana_build.bundle import SERVER_VERSION
from sana_build.plan import STAGES
from sana_build.server import Ports, TritonServer
from sana_client.pipeline import Piece
from sana_client.video import VideoReader
from sana_runtime.geometry import StreamGeometry
from sana_runtime.manifest import Manifest
from sana_runtime.stages import Request
from sana_runtime.triton_backend import load_stage

ROOT = Path(__file__).parents[1]
REPOSITORY = Path("out/repo")
CLIP = ROOT / "assets" / "big-buck-bunny.mp4"
RESULTS = ROOT / "benchmarks" / "results"
CHUNKS = 40
PROMPT = "Turn the scene into a warm watercolor painting"
SKIPPED = 3
"""Chunks left out of every median: the first has another shape, the next ones fill the window."""


@dataclass(frozen=True)
class Run:
    """Seconds per steady chunk (medians): from sending to the answer, between answers, and per stage."""

    latency: float
    interval: float
    stages: dict[str, float]
    frames: list[np.ndarray]


def main() -> None:
    if not REPOSITORY.is_dir():
        sys.exit("benchmarks/serving.py needs out/repo: run `sana-build --model tiny --gpu cpu --output out/repo`")
    console = Console()
    pieces = clip_pieces(Manifest.read(REPOSITORY).geometry)
    with console.status("running the stages in this process"):
        alone = in_process(pieces)
    with TritonServer(REPOSITORY, Ports.free(), Path("out/bench-server.log")) as server:
        runs = {}
        for in_flight in (1, 2):
            with console.status(f"streaming with {in_flight} in flight"):
                runs[in_flight] = served(server.grpc_url, pieces, in_flight)
    for in_flight, run in runs.items():
        if any(not np.array_equal(a, b) for a, b in zip(run.frames, alone.frames, strict=True)):
            sys.exit(f"frames served with {in_flight} in flight differ from the stages alone: no time is reported")
    figures = summary(alone, runs)
    show(figures, console)
    write(figures, console)


def clip_pieces(geometry: StreamGeometry) -> list[Piece]:
    """CHUNKS chunks of the shipped clip, played forwards and backwards until there are enough."""
    sizes = [geometry.chunk(index).frames for index in range(CHUNKS)]
    clip = [frame.pixels for frame in VideoReader(str(CLIP)).frames(geometry.height, geometry.width)]
    loop = clip + clip[-2:0:-1]
    video = np.stack([loop[i % len(loop)] for i in range(sum(sizes))])
    chunks = np.split(video, np.cumsum(sizes)[:-1])
    return [Piece(i, frames, PROMPT, i == CHUNKS - 1) for i, frames in enumerate(chunks)]


def in_process(pieces: Sequence[Piece]) -> Run:
    """The stages alone, in order, without server or client."""
    stages = {name: load_stage(name, REPOSITORY, "1") for name in STAGES}
    seconds: dict[str, list[float]] = {name: [] for name in STAGES}
    frames = []
    for piece in pieces:
        prompt = np.frombuffer(piece.prompt.encode(), np.uint8)[None]
        tensors = {"frames": piece.frames[None], "prompt": prompt}
        for name, stage in stages.items():
            request = Request(tensors, {"chunk": piece.index}, "bench", start=piece.index == 0, end=piece.last)
            started = time.perf_counter()
            tensors |= stage.run(request)
            seconds[name].append(time.perf_counter() - started)
        frames.append(tensors["edited"][0].copy())
    medians = {name: statistics.median(values[SKIPPED:-1]) for name, values in seconds.items()}
    return Run(sum(medians.values()), sum(medians.values()), medians, frames)


def served(url: str, pieces: Sequence[Piece], in_flight: int) -> Run:
    """The same chunks through the server; a chunk is sent as soon as fewer than `in_flight` are unanswered."""
    timing, frames = asyncio.run(stream(url, pieces, in_flight, SKIPPED, np.asarray))
    stages = {name: stage.compute for name, stage in timing.stages.items()}
    return Run(timing.latency, timing.interval, stages, frames)


def summary(alone: Run, runs: dict[int, Run]) -> dict:
    """Every figure in seconds per steady chunk of 24 frames."""
    slowest = max(runs[2].stages, key=lambda name: runs[2].stages[name])
    return {
        "stages_alone": alone.stages,
        "sum_alone": alone.latency,
        "latency_1_in_flight": runs[1].latency,
        "added_by_server_and_client": runs[1].latency / alone.latency - 1,
        "interval_2_in_flight": runs[2].interval,
        "stages_2_in_flight": runs[2].stages,
        "slowest_stage": slowest,
        "interval_over_slowest_stage": runs[2].interval / runs[2].stages[slowest],
        "frames_per_second_2_in_flight": 24 / runs[2].interval,
        "frames_equal": True,
        "chunks": CHUNKS,
        **provenance(),
    }


def provenance() -> dict:
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("onnxruntime", "numpy", "tritonclient")}
        | {"triton": SERVER_VERSION},
        "commit": commit(),
    }


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())


def show(figures: dict, console: Console) -> None:
    table = Table(
        "milliseconds per 24-frame chunk", "alone", "2 in flight", title=f"{figures['cores']} cores, {figures['cpu']}"
    )
    for stage, seconds in figures["stages_alone"].items():
        table.add_row(stage, f"{seconds * 1e3:.1f}", f"{figures['stages_2_in_flight'][stage] * 1e3:.1f}")
    table.add_row("all stages", f"{figures['sum_alone'] * 1e3:.1f}", "")
    table.add_row("served, 1 in flight", f"{figures['latency_1_in_flight'] * 1e3:.1f}", "")
    table.add_row("served, between answers", "", f"{figures['interval_2_in_flight'] * 1e3:.1f}")
    console.print(table)
    console.print(f"server and client add {figures['added_by_server_and_client']:.1%} to the stages")
    console.print(
        f"2 in flight: {figures['frames_per_second_2_in_flight']:.1f} frames per second, an answer every "
        f"{figures['interval_over_slowest_stage']:.2f} times the slowest stage ({figures['slowest_stage']})"
    )


def write(figures: dict, console: Console) -> None:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "serving.json"
    path.write_text(json.dumps(figures, indent=1) + "\n")
    console.print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
