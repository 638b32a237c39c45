"""A repository for a data-centre GPU behind the real Triton server: `python benchmarks/gpu_serving.py REPO`.

The stages alone in a process of their own come first, then the same chunks through the server, which must give the same
frames before any time is told; then live streams that each send 24 frames a second. Each figure is written at once.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import count as counting
from multiprocessing import get_context
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from statistics import median
from typing import Any
from urllib.request import urlopen

import numpy as np
from prometheus_client.parser import text_string_to_metric_families
from records import commit, psnr
from rich.console import Console
from streaming import PROMPT, Timing, frames_of, lateness, live, pieces_of, stream

from sana_build.plan import STAGES
from sana_build.server import Ports, TritonServer
from sana_runtime.manifest import Manifest
from sana_runtime.regions import PREFIX
from sana_runtime.stages import Request
from sana_runtime.triton_backend import load_stage

ROOT = Path(__file__).parents[1]
CHUNKS = 16
SKIPPED = 4
"""Chunks before the medians begin: they fill the window."""

LIVE = (1, 2, 4, 5, 8)
FPS = 24.0
LIVE_SKIPPED = 6
"""First chunks take longer, and streams that begin together need some seconds to make up for them."""

EQUAL_DB = 45.0
"""PSNR above which served frames count as those of the stages alone: rounding may differ between two runs."""

LOG = Path("gpu-serving.log")

Frames = list[np.ndarray]


@dataclass
class Record:
    """Figures in a file that is written again with each of them, so that a run that is cut short leaves what it has."""

    path: Path
    console: Console
    figures: dict[str, Any] = field(default_factory=dict)

    def note(self, name: str, figure: Any) -> None:
        self.figures[name] = figure
        self.path.write_text(json.dumps(self.figures, indent=1) + "\n")
        self.console.print(name, figure)


@dataclass(frozen=True)
class Inside:
    """What a stage of the server says of itself: its chunks, and their seconds in all and in its engines."""

    chunks: float
    seconds: float
    engines: float

    def since(self, before: "Inside") -> "Inside":
        """Of one chunk, the mean of those after `before`."""
        chunks = self.chunks - before.chunks
        seconds, engines = self.seconds - before.seconds, self.engines - before.engines
        return Inside(1, seconds / chunks, engines / chunks)


def inside(url: str) -> dict[str, Inside]:
    """By stage, from the server's metrics, which are a fraction of a second old."""
    families = text_string_to_metric_families(urlopen(url, timeout=10).read().decode())
    found = {(x.name, x.labels.get("stage")): x.value for family in families for x in family.samples}
    names = "sana_chunk_seconds_count", "sana_chunk_seconds_sum", "sana_engine_seconds_sum"
    return {stage: Inside(*(found[name, stage] for name in names)) for stage in STAGES}


class InTensors:
    """Frames that a request holds, as from a client on another host."""

    def put(self, frames: np.ndarray) -> tuple[dict[str, Any], dict[str, Any]]:
        """Tensors and parameters of the request."""
        return {"frames": frames[None]}, {}

    def take(self, edited: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        return edited[0].copy()


class InPlace:
    """Frames and latents in shared memory, as from a client on this host; a latent is no larger than its frames."""

    def __init__(self, memory: SharedMemory) -> None:
        self.memory, self.size = memory, memory.size // 3

    def put(self, frames: np.ndarray) -> tuple[dict[str, Any], dict[str, Any]]:
        self._view(0, frames.shape)[...] = frames
        tensors = "frames", "edited", "latent"
        places = {f"{tensor}_offset": index * self.size for index, tensor in enumerate(tensors)}
        regions = {f"{tensor}_region": self.memory.name for tensor in tensors}
        return {"frames": frames[None, :0]}, places | regions

    def take(self, edited: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        return self._view(self.size, shape).copy()

    def _view(self, offset: int, shape: tuple[int, ...]) -> np.ndarray:
        return np.ndarray(shape, np.uint8, self.memory.buf, offset)


def alone(repository: Path, chunks: Sequence[np.ndarray]) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Median seconds of stages and engines in this process; the edited frames, which must not depend on their way."""
    began = time.perf_counter()
    stages = {name: load_stage(name, repository, "1") for name in STAGES}
    loading = time.perf_counter() - began
    in_tensors, _, wanted = run(stages, chunks, InTensors())
    memory = SharedMemory(f"{PREFIX}benchmark{time.time_ns()}", create=True, size=3 * chunks[0].nbytes)
    try:
        in_place, engines, edited = run(stages, chunks, InPlace(memory))
    finally:
        memory.unlink()
    return {
        "loading": loading,
        "psnr_of_both_ways": min(map(psnr, wanted, edited)),
        "stages_with_frames_in_tensors": in_tensors,
        "stages": in_place,
        "engines": engines,
    }, edited


def run(
    stages: Mapping[str, Any], chunks: Sequence[np.ndarray], way: InTensors | InPlace
) -> tuple[dict[str, float], dict[str, float], list[np.ndarray]]:
    """One stream through the stages: median seconds of each and of its engines, and the edited frames."""
    seconds, engines = ({name: list[float]() for name in stages} for _ in range(2))
    edited = []
    for index, frames in enumerate(chunks):
        tensors, parameters = way.put(frames)
        tensors["prompt"] = np.frombuffer(PROMPT.encode(), np.uint8)[None]
        last = index == len(chunks) - 1
        for name, stage in stages.items():
            asked = Request(tensors, {"chunk": index, **parameters}, "bench", start=index == 0, end=last)
            began = time.perf_counter()
            (answer,) = stage.run_batch([asked])
            seconds[name].append(time.perf_counter() - began)
            engines[name].append(stage.lap()())
            if isinstance(answer, Exception):
                raise answer
            tensors |= answer
        edited.append(way.take(tensors["edited"], frames.shape))
    return medians(seconds), medians(engines), edited


def medians(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Of steady chunks, by stage."""
    return {name: median(values[SKIPPED:]) for name, values in seconds.items()}


def check(what: str, decibels: float) -> None:
    """End the run if two ways gave different frames."""
    if decibels < EQUAL_DB:
        raise SystemExit(f"{what} are {decibels:.1f} dB from those of the stages alone: no more time is reported")


def by_place(timing: Timing, stages: Mapping[str, Inside]) -> dict[str, float]:
    """Where the seconds between sending a chunk and its answer go, in the mean; what is not named elsewhere is the
    client's, gRPC's and the ensemble's.
    """
    served = timing.stages.values()
    computed, copied, queued = (sum(getattr(x, name) for x in served) for name in ("compute", "copy", "queue"))
    engines, called = (sum(getattr(x, name) for x in stages.values()) for name in ("engines", "seconds"))
    return {
        "engines": engines,
        "stages_around_engines": called - engines,
        "server_to_python_and_back": computed - called,
        "copies_of_the_server": copied,
        "queues": queued,
        "rest": timing.mean - computed - copied - queued,
    }


def measure_alone(repository: Path, chunks: list[np.ndarray], record: Record) -> Frames:
    # In a process of its own, which gives its memory back to the server.
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        found, edited = process.submit(alone, repository, chunks).result()
    record.note("alone", found)
    check("frames that went another way", found["psnr_of_both_ways"])
    return edited


def watched(server: TritonServer, chunks: Frames, in_flight: int) -> tuple[Timing, Frames, dict[str, Inside]]:
    """One stream: its times, its edited frames, and what stages say of a chunk meanwhile."""
    said, index = list[dict[str, Inside]](), counting()

    def look(frames: np.ndarray) -> np.ndarray:
        if next(index) in (SKIPPED, len(chunks) - 1):
            said.append(inside(server.metrics_url))
        return frames

    timing, edited = asyncio.run(stream(server.grpc_url, pieces_of(chunks), in_flight, SKIPPED, look))
    before, after = said
    return timing, edited, {name: after[name].since(before[name]) for name in STAGES}


def one_in_flight(server: TritonServer, chunks: Frames, wanted: Frames, record: Record) -> None:
    """The latency of a chunk and where it goes, after a look at the frames."""
    timing, edited, stages = watched(server, chunks, 1)
    record.note("psnr_to_stages_alone", min(map(psnr, edited, wanted)))
    check("served frames", record.figures["psnr_to_stages_alone"])
    record.note("one_in_flight", asdict(timing))
    places = by_place(timing, stages)
    record.note("by_place", places)
    record.note("outside_engines", 1 - places["engines"] / timing.mean)


def several(server: TritonServer, chunks: Frames, slots: int, record: Record) -> None:
    """As fast as it goes with three chunks in flight, then live streams, as many as there are slots for."""
    timing, _, stages = watched(server, [*chunks, *chunks[1:]], 3)
    record.note("three_in_flight", asdict(timing))
    record.note("engines_with_three_in_flight", sum(stage.engines for stage in stages.values()))
    record.note("frames_per_second", len(chunks[1]) / timing.interval)
    for count in [count for count in LIVE if count <= slots]:
        seconds = asyncio.run(live(server.grpc_url, chunks, count, FPS, LIVE_SKIPPED))
        record.note(f"live_{count}", lateness(seconds, len(chunks[1]) / FPS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repository", type=Path)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "gpu_serving.json")
    arguments = parser.parse_args()
    manifest = Manifest.read(arguments.repository)
    record = Record(arguments.output, Console(width=140))
    record.note("about", about(manifest))
    chunks = frames_of(manifest.geometry, CHUNKS, seed=1)
    wanted = measure_alone(arguments.repository, chunks, record)
    began = time.perf_counter()
    with TritonServer(arguments.repository, Ports.free(), LOG, gpu=True) as server:
        record.note("server_ready", time.perf_counter() - began)
        one_in_flight(server, chunks, wanted, record)
        several(server, chunks, manifest.streams, record)
    if missing := [count for count in LIVE if count > manifest.streams]:
        record.console.print(
            f"built for {manifest.streams} streams, so {missing} live ones were not tried: `--streams`"
        )


def about(manifest: Manifest) -> dict[str, object]:
    import torch

    return {
        "gpu": torch.cuda.get_device_name(),
        "model": manifest.model,
        "policy": manifest.policy,
        "checkpoint": manifest.checkpoint,
        "versions": manifest.versions,
        "commit": commit(),
    }


if __name__ == "__main__":
    main()
