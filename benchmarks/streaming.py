"""Made-up video through a served model: as fast as it answers, or live at the pace of cameras; where the time went."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import TypeVar

import numpy as np

from sana_client.pipeline import Piece, edit
from sana_client.session import Limits, connect
from sana_client.stats import StageTime, between, stage_times
from sana_runtime.geometry import StreamGeometry

T = TypeVar("T")

PROMPT = "Turn the scene into a warm watercolor painting"
LIVE_IN_FLIGHT = 3
"""Chunks that a live stream may have under way: enough that a late answer does not hold up the camera."""


@dataclass(frozen=True)
class Timing:
    """Seconds per steady chunk: from sending to the answer, median and mean, and means between answers, which may come
    in pairs, and of every stage.
    """

    latency: float
    mean: float
    interval: float
    stages: dict[str, StageTime]


def frames_of(geometry: StreamGeometry, count: int, seed: int) -> list[np.ndarray]:
    """Chunks of a moving pattern, uint8 (F, H, W, 3)."""
    y, x = np.mgrid[: geometry.height, : geometry.width]
    sizes = [geometry.chunk(index).frames for index in range(count)]
    base = np.stack([(x + y) % 256, (2 * x + 31 * seed) % 256, (x // 2 + 3 * y) % 256], -1).astype(np.uint8)
    video = (np.roll(base, 5 * frame, axis=1) for frame in range(sum(sizes)))
    return [np.stack([next(video) for _ in range(size)]) for size in sizes]


def pieces_of(chunks: Sequence[np.ndarray]) -> list[Piece]:
    return [Piece(index, frames, PROMPT, index == len(chunks) - 1) for index, frames in enumerate(chunks)]


async def stream(
    url: str,
    pieces: Sequence[Piece],
    in_flight: int,
    skipped: int,
    look: Callable[[np.ndarray], T],
    transport: str = "auto",
) -> tuple[Timing, list[T]]:
    """As fast as the server answers: the time of the chunks after those `skipped`, and a `look` at every edited one."""

    async def source() -> AsyncIterator[Piece]:
        for piece in pieces:
            yield piece

    seen: list[T] = []
    arrivals, latencies = [], []
    async with connect(url, limits=Limits(in_flight=in_flight), transport=transport) as session:
        async for _, answer in edit(session, source()):
            if len(seen) == skipped:
                before = stage_times(await session.statistics(), session.info.stages)
            seen.append(look(answer.frames))
            arrivals.append(time.perf_counter())
            latencies.append(answer.seconds)
        after = stage_times(await session.statistics(), session.info.stages)
    stages = {name: per_chunk(found) for name, found in between(before, after).items()}
    # Behind the last of these less is under way than before the first, so its answers come sooner.
    steady = arrivals[skipped : len(arrivals) - in_flight + 1]
    interval = (steady[-1] - steady[0]) / (len(steady) - 1)
    return Timing(median(latencies[skipped:]), fmean(latencies[skipped:]), interval, stages), seen


def per_chunk(total: StageTime) -> StageTime:
    count = max(total.requests, 1)
    return StageTime(total.requests, total.queue / count, total.compute / count, total.copy / count)


async def live(url: str, chunks: Sequence[np.ndarray], streams: int, fps: float, skipped: int) -> np.ndarray:
    """So many streams at once, whose chunks are there when cameras would have their frames.

    Seconds from then until the edit is in the client's hands, (streams, chunks after those `skipped`).
    """

    async def lane(number: int) -> list[float]:
        period = len(chunks[1]) / fps
        began = time.perf_counter() + number * period / streams

        async def camera() -> AsyncIterator[Piece]:
            for piece in pieces_of(chunks):
                await asyncio.sleep(max(0.0, began + piece.index * period - time.perf_counter()))
                yield piece

        async with connect(url, limits=Limits(in_flight=LIVE_IN_FLIGHT)) as session:
            return [time.perf_counter() - (began + piece.index * period) async for piece, _ in edit(session, camera())]

    return np.array(await asyncio.gather(*(lane(number) for number in range(streams))))[:, skipped:]


def lateness(seconds: np.ndarray, period: float) -> dict[str, float]:
    """Of live streams whose chunks come every `period` seconds."""
    return {
        "p50": float(np.percentile(seconds, 50)),
        "p99": float(np.percentile(seconds, 99)),
        "last": float(seconds[:, -1].mean()),
        "in_time": float((seconds <= period).mean()),
    }
