"""One run of `sana-stream`: a video through a session into a file, and the figures of the run."""

import asyncio
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sana_client.ahead import Ahead
from sana_client.chunks import Chunk, Prompts, cut
from sana_client.pipeline import edit
from sana_client.session import Edited, Limits, Session, connect
from sana_client.sheet import ContactSheet
from sana_client.stats import StageTime, between, latency, stage_times
from sana_client.video import VideoReader
from sana_client.writer import VideoWriter, check_output, check_writable


@dataclass(frozen=True)
class Job:
    """What to stream where, and how."""

    source: str
    output: Path
    prompts: Prompts
    server: str
    model: str
    seed: int
    transport: str
    limits: Limits
    side_by_side: bool
    sheet: Path | None


@dataclass
class Report:
    """The figures of a run; times are in seconds, `latency` runs from sending a chunk to its answer."""

    transport: str
    frames_in: int = 0
    frames_out: int = 0
    chunks: int = 0
    restarts: int = 0
    stopped: bool = False
    first_chunk: float | None = None
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    stages: dict[str, StageTime] = field(default_factory=dict)

    @property
    def fps(self) -> float:
        return self.frames_out / self.seconds if self.seconds else 0.0

    def as_json(self) -> dict[str, Any]:
        """The report as one JSON object, percentiles instead of every latency."""
        figures = asdict(self)
        return figures | {"fps": round(self.fps, 3), "latency": latency(figures.pop("latencies"))}


class Display(Protocol):
    """Where a run tells how it goes."""

    def begin(self, frames: int | None) -> None:
        """The stream starts; `frames` is its expected length, None for a live one."""

    def advance(self, frames: int) -> None:
        """So many more frames are edited and written."""

    def notice(self, text: str) -> None:
        """Something a person should know, though nothing has failed."""


@dataclass
class Files:
    """What a run writes."""

    writer: VideoWriter
    sheet: ContactSheet | None
    side_by_side: bool

    def add(self, chunk: Chunk, edited: np.ndarray) -> None:
        """Write the real frames of an edited chunk; the repeated ones at the end of a video are left out."""
        count = len(chunk.pts)
        source, edited = chunk.frames[:count], edited[:count]
        if self.sheet:
            self.sheet.add(source[0], edited[0])
        frames = np.concatenate([source, edited], axis=2) if self.side_by_side else edited
        self.writer.write(frames, chunk.pts, chunk.audio)


async def run(job: Job, display: Display) -> Report:
    """Stream a video through the server into the job's files; raises ClientError, the files end where it struck."""
    form = check_output(job.output, job.source)
    if job.sheet:
        check_writable(job.sheet)
    reader = VideoReader(job.source)
    async with connect(job.server, job.model, seed=job.seed, transport=job.transport, limits=job.limits) as session:
        if session.transport.note:
            display.notice(f"frames travel in the gRPC message: {session.transport.note}")
        width = session.info.width * (2 if job.side_by_side else 1)
        writer = VideoWriter(job.output, session.info.height, width, reader, form)
        for warning in writer.warnings:
            display.notice(warning)
        files = Files(writer, ContactSheet() if job.sheet else None, job.side_by_side)
        try:
            return await _measured(session, reader, job.prompts, files, display)
        finally:
            await asyncio.to_thread(writer.close)
            if files.sheet and job.sheet:
                files.sheet.save(job.sheet)


async def _measured(session: Session, reader: VideoReader, prompts: Prompts, files: Files, display: Display) -> Report:
    report = Report(session.transport.name)
    before = stage_times(await session.statistics(), session.info.stages)
    display.begin(reader.length)
    chunks = Ahead(_counted(cut(reader, session.info, prompts), report))
    try:
        with _stopped_by_signals(chunks, display):
            await _pump(session, chunks, files, report, display)
        report.stopped = chunks.stopped
        if not chunks.stopped:
            files.writer.write(np.empty((0,)), (), reader.take_audio())
    finally:
        if await chunks.join():
            reader.close()
    after = stage_times(await session.statistics(), session.info.stages)
    report.stages = between(before, after)
    return report


def _counted(chunks: Iterator[Chunk], report: Report) -> Iterator[Chunk]:
    for chunk in chunks:
        report.frames_in += len(chunk.pts)
        yield chunk


async def _pump(session: Session, chunks: Ahead[Chunk], files: Files, report: Report, display: Display) -> None:
    began = time.monotonic()
    async for chunk, edited in edit(session, chunks):
        report.first_chunk = report.first_chunk or time.monotonic() - began
        if chunk.index == 0 and report.chunks:
            report.restarts += 1
            display.notice(f"the model holds {session.info.max_chunks} chunks: a new sequence has started")
        await asyncio.to_thread(files.add, chunk, edited.frames)
        _count(report, chunk, edited)
        display.advance(len(chunk.pts))
        report.seconds = time.monotonic() - began


def _count(report: Report, chunk: Chunk, edited: Edited) -> None:
    report.chunks += 1
    report.frames_out += len(chunk.pts)
    report.latencies.append(edited.seconds)


@contextmanager
def _stopped_by_signals(chunks: Ahead[Chunk], display: Display) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM ends the input, so that the file is finished; a second one ends the process."""
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)

    def stop() -> None:
        display.notice("stopping: the chunks on their way are still written")
        chunks.stop()
        restore()

    def restore() -> None:
        for number in signals:
            loop.remove_signal_handler(number)

    for number in signals:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        restore()
