"""Edits of whole files in the background, one after another per slot: what is behind `/v1/videos`."""

import asyncio
import secrets
import sys
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sana_client.ahead import Ahead
from sana_client.chunks import Chunk, Prompts, cut
from sana_client.errors import ClientError
from sana_client.gateway.access import Caller
from sana_client.gateway.hub import Hub, log_event
from sana_client.gateway.media import Media
from sana_client.gateway.refusals import Full, NotFound, OverLimit
from sana_client.pipeline import edit
from sana_client.session import Limits, Session, connect
from sana_client.video import VideoReader
from sana_client.writer import FORMATS, VideoWriter

ENCODING_PROGRESS = 99
EXPIRES_SECONDS = 24 * 3600
LINE_SECONDS = 1.0


@dataclass(eq=False)
class Job:
    """One edit of a file; times are seconds since the epoch."""

    media: Media
    prompt: str
    seed: int
    owner: str
    path: Path
    size: str
    model: str
    id: str = field(default_factory=lambda: f"video_{secrets.token_urlsafe(12)}")
    status: str = "queued"
    progress: int = 0
    error: str = ""
    frames: int = 0
    seconds: float = 0.0
    created: float = field(default_factory=time.time)
    completed: float | None = None
    task: asyncio.Task[None] | None = None

    def card(self) -> dict[str, Any]:
        """The job as the protocol shows it."""
        done = self.status == "completed"
        return {
            "id": self.id,
            "object": "video",
            "model": self.model,
            "status": self.status,
            "progress": self.progress,
            "created_at": int(self.created),
            "completed_at": int(self.completed) if self.completed else None,
            "expires_at": int(self.completed + EXPIRES_SECONDS) if self.completed else None,
            "size": self.size,
            "seconds": f"{self.seconds:.3f}".rstrip("0").rstrip("."),
            "quality": "standard",
            "url": f"/v1/videos/{self.id}/content" if done else None,
            "num_outputs": int(done),
            "error": {"message": self.error} if self.error else None,
            "inference_time_s": round(self.completed - self.created, 3) if self.completed else None,
        }


@dataclass
class Jobs:
    """The jobs of a gateway, oldest first; beyond the number its settings allow, finished ones are forgotten."""

    hub: Hub
    _jobs: OrderedDict[str, Job] = field(default_factory=OrderedDict)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    def add(self, media: Media, prompt: str, seed: int, caller: Caller) -> Job:
        """Queue an edit; raises OverLimit when too many are unfinished, ServerLost when there is no model."""
        info = self.hub.model()
        self._expire()
        if len(self._jobs) >= self.hub.settings.jobs:
            raise OverLimit(f"{len(self._jobs)} jobs are unfinished: try again when some are done, or delete some")
        path = self.hub.settings.folder / f"job-{secrets.token_urlsafe(12)}.mp4"
        size = f"{info.width}x{info.height}"
        job = Job(media, prompt, seed, caller.name, path, size, info.model)
        self._jobs[job.id] = job
        job.task = asyncio.create_task(self._run(job, caller))
        return job

    def find(self, job_id: str, caller: Caller) -> Job:
        """A job of this caller; raises NotFound."""
        job = self._jobs.get(job_id)
        if job is None or job.owner != caller.name:
            raise NotFound("Video not found")
        return job

    def of(self, caller: Caller) -> list[Job]:
        """The caller's jobs, oldest first."""
        return [job for job in self._jobs.values() if job.owner == caller.name]

    def remove(self, job: Job) -> None:
        """Forget a job and its file, ending it if it runs."""
        self._jobs.pop(job.id, None)
        job.status = "deleted"
        if job.task:
            job.task.cancel()
        job.path.unlink(missing_ok=True)

    async def close(self) -> None:
        """End every job and remove its file."""
        tasks = [job.task for job in self._jobs.values() if job.task]
        for job in list(self._jobs.values()):
            self.remove(job)
        await asyncio.gather(*tasks, return_exceptions=True)

    def _expire(self) -> None:
        done = [job for job in self._jobs.values() if job.completed]
        room = self.hub.settings.jobs - len(self._jobs)
        for job in done:
            if room > 0 and time.time() - job.created < EXPIRES_SECONDS:
                break
            self.remove(job)
            room += 1

    async def _run(self, job: Job, caller: Caller) -> None:
        try:
            # One at a time: live viewers must not find every slot taken by jobs.
            async with self._turn, self._slot(caller):
                job.status = "in_progress"
                await self._edit(job)
            job.status, job.progress = "completed", 100
        except ClientError as error:
            job.status, job.error = "failed", _public(self.hub.public(error), job)
            job.path.unlink(missing_ok=True)
        except asyncio.CancelledError:
            job.path.unlink(missing_ok=True)
            raise
        finally:
            job.completed = time.time()
            log_event("job", job=job.id, caller=caller.name, status=job.status, frames=job.frames, error=job.error)

    @asynccontextmanager
    async def _slot(self, caller: Caller) -> AsyncIterator[None]:
        """A slot of the model, however long that takes."""
        while True:
            try:
                await self.hub.admission.enter(caller.name, sys.maxsize, None)
                break
            except Full:
                await asyncio.sleep(LINE_SECONDS)
        try:
            yield
        finally:
            self.hub.admission.leave(caller.name)

    async def _edit(self, job: Job) -> None:
        settings = self.hub.settings
        limits = Limits(settings.in_flight, slot_seconds=2.0, chunk_seconds=settings.chunk_seconds)
        reader = VideoReader(str(job.media.path))
        async with connect(settings.triton, settings.model, seed=job.seed, limits=limits) as session:
            info = session.info
            writer = VideoWriter(job.path, info.height, info.width, reader, FORMATS[".mp4"])
            try:
                await _pump(job, session, reader, writer)
            finally:
                await asyncio.to_thread(writer.close)


async def _pump(job: Job, session: Session, reader: VideoReader, writer: VideoWriter) -> None:
    chunks: Ahead[Chunk] = Ahead(cut(reader, session.info, Prompts(job.prompt)))
    try:
        async for chunk, edited in edit(session, chunks):
            count = len(chunk.pts)
            await asyncio.to_thread(writer.write, edited.frames[:count], chunk.pts, chunk.audio)
            job.frames += count
            job.seconds = float((chunk.pts[-1] + 1 / (reader.rate * reader.time_base)) * reader.time_base)
            job.progress = min(ENCODING_PROGRESS, 100 * job.frames // max(job.media.video.frames, 1))
        writer.write(np.empty((0,)), (), reader.take_audio())
    finally:
        if await chunks.join():
            reader.close()


def _public(text: str, job: Job) -> str:
    """The text without the places where things lie on this machine."""
    return text.replace(str(job.media.path), "the video").replace(str(job.path), "the result")
