"""One live session: what its owner asks for, the run that edits its source, and its end."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sana_client.errors import ClientError, ServerLost
from sana_client.gateway import messages as m
from sana_client.gateway.access import Caller
from sana_client.gateway.audience import Audience, SlowReader
from sana_client.gateway.edge import FrameBuffer, SourceFrame
from sana_client.gateway.generation import Generation, LivePiece
from sana_client.gateway.hub import Hub, log, log_event
from sana_client.gateway.machine import Machine, Message, Phase
from sana_client.gateway.output import Output, OutputForm
from sana_client.gateway.pacing import Cadence, Pacer
from sana_client.gateway.refusals import CommandRefused, Full, InvalidRequest, OverLimit
from sana_client.gateway.signal import Signal
from sana_client.gateway.source import decode_frames, filled
from sana_client.session import Edited, Limits, connect

SLOT_SECONDS = 2.0
"""How long the model server may take to find the slot that the gateway knows is free."""

LEFT = "client left"
REASONS: dict[type[ClientError], str] = {Full: "full", OverLimit: "over limit", SlowReader: "slow reader"}


@dataclass
class LiveSession:
    """A session of one caller. `start` runs in a task of its own, so that commands are taken all the while."""

    hub: Hub
    caller: Caller
    machine: Machine
    form: OutputForm
    audience: Audience
    id: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    ended: str = LEFT
    error: ClientError | None = None
    lossless: bool = False
    running: asyncio.Task[None] | None = None
    hang_up: Callable[[], Awaitable[None]] | None = None
    buffer: FrameBuffer = field(init=False)
    cadence: Cadence = field(init=False)
    chunks: int = 0
    frames: int = 0
    _changed: Signal = field(default_factory=Signal)
    _path: Path | None = None
    _began: float = field(default_factory=time.monotonic)
    _keeps_up: bool = False
    _in_line: bool = False
    _generated: bool = False
    _counted: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        self.cadence = Cadence(self.form.fps, time.monotonic)
        self.buffer = FrameBuffer(self.machine.info.first_frames)

    def open(self) -> None:
        """Let spectators find the session, and tell its state."""
        self.hub.sessions[self.id] = self
        log_event("session opened", session=self.id, caller=self.caller.name)
        self.audience.tell(Message("session", {"session_id": self.id, "model": self.machine.info.model}))
        self.audience.tell(self.machine.state())

    async def close(self) -> None:
        """Stop the run, give the slot back, and write the audit line; harmless when that has happened."""
        if self.hub.sessions.pop(self.id, None) is None:
            return
        self.audience.finish()
        if self.running:
            self.running.cancel()
            await asyncio.wait([self.running])
        self._count()
        self.hub.metrics.sessions.labels(self.ended).inc()
        log_event("session closed", session=self.id, caller=self.caller.name, ended=self.ended, **self._figures())
        if self.hang_up:
            await self.hang_up()

    def _figures(self) -> dict[str, Any]:
        return {
            "seconds": round(time.monotonic() - self._began, 3),
            "chunks": self.chunks,
            "frames_in": self.buffer.received,
            "frames_out": self.frames,
            "frames_dropped": self.buffer.dropped,
            "underruns": self.cadence.underruns,
            "stalled_seconds": round(self.cadence.stalled, 3),
        }

    async def command(self, name: str, data: Any) -> None:
        """Obey one command; a refusal is told to the owner and changes nothing."""
        try:
            await self._obey(name, data)
        except SlowReader:
            raise
        except ClientError as error:
            self.refuse(name, str(error))

    def refuse(self, command: str, reason: str) -> None:
        """Tell that a command was not accepted."""
        self.hub.metrics.refused.labels("command").inc()
        self.audience.tell(Message("command_error", {"command": command, "reason": reason}))

    async def _obey(self, name: str, data: Any) -> None:
        if name == "frame":
            await self.push(data)
        elif name == "finish":
            self.finish()
        elif name == "start":
            await self._run_over()
            self.start(data.wait)
        elif name == "set_video":
            self._tell(await self._set_video(data.video))
        else:
            if name == "reset" and self.running and self._in_line:
                self.running.cancel()
            self.obey_now(name, data)

    async def _run_over(self) -> None:
        """Wait for a run that has ended and is giving its slot back."""
        if self.running and self._generated:
            await asyncio.wait([self.running])

    def obey_now(self, name: str, data: Any) -> None:
        """Change the machine; raises CommandRefused."""
        self._tell(self.machine.command(name, data))
        self._changed.notify()

    async def _set_video(self, reference: m.FileRef) -> list[Message]:
        self.machine.check("set_video")
        media = await asyncio.to_thread(self.hub.media.find, reference, self.caller)
        told = self.machine.set_video(media.video)
        self._path = media.path
        return told

    async def use_video(self, reference: m.FileRef) -> None:
        """Edit a file instead of pushed frames; raises InvalidRequest, NotFound or CommandRefused."""
        self.machine.mode = "file"
        await self._set_video(reference)

    async def push(self, frame: m.Frame) -> None:
        """Take source frames in; raises InvalidRequest for what is no picture, or not wanted."""
        if self.machine.mode != "live":
            raise InvalidRequest("the session edits a file: set_mode live takes frames")
        most, arrived = self.hub.settings.frame_pixels, time.monotonic()
        pictures = await asyncio.to_thread(decode_frames, frame, self.machine.info.shape(1)[2:4], most)
        for offset, pixels in enumerate(pictures):
            number = self.buffer.received if frame.number is None else frame.number + offset
            await self.push_pixels(SourceFrame(pixels, number, frame.captured_ms, arrived))

    @property
    def takes_frames(self) -> bool:
        """Whether pushed frames would be edited."""
        return bool(self.running) and self.machine.mode == "live" and self.machine.phase is not Phase.PAUSED

    async def push_pixels(self, frame: SourceFrame) -> None:
        """Take one frame of the model's size in, while the session runs."""
        if self.lossless:
            await self._changed.until(lambda: not self.buffer.full or not self.running)
        if self.takes_frames:
            self.buffer.push(frame)
            self._changed.notify()

    def missed(self, frames: int) -> None:
        """Count frames that gave way before they could be pushed."""
        self.buffer.received += frames
        self.buffer.dropped += frames

    def wake(self) -> None:
        """Look again at everything that is waited for."""
        self._changed.notify()

    def finish(self) -> None:
        """The source has no more frames: the run ends with the ones that are here."""
        self.buffer.ended = True
        self._changed.notify()

    def start(self, wait: bool) -> None:
        """Begin in a task of its own; raises CommandRefused when the session cannot start now."""
        if self.running:
            raise CommandRefused("start", "the session has started, or stands in line")
        self.machine.check_start()
        info = self.machine.info
        room = info.first_frames + (info.steady_frames if self.machine.mode == "file" else 0)
        self.buffer = FrameBuffer(room, self.buffer.received, self.buffer.dropped)
        self.ended, self.error, self._generated = LEFT, None, False
        self.running = asyncio.create_task(self._run(wait))

    async def _run(self, wait: bool) -> None:
        try:
            await self._admitted(wait)
        except ClientError as error:
            self._fail(error)
        except Exception:
            # A defect of ours must not leave a viewer waiting for ever.
            log.exception("session %s", self.id)
            self._fail(ServerLost("the gateway failed, and its log says why: start again"))
        else:
            self.ended = "complete"
        finally:
            self.running = None
            self._changed.notify()

    def _fail(self, error: ClientError) -> None:
        self.ended, self.error = REASONS.get(type(error), "failed"), error
        self.hub.metrics.refused.labels(self.ended).inc(isinstance(error, Full | OverLimit))
        log_event("trouble", session=self.id, reason=self.ended, error=str(error))
        self._tell_end(error)

    def on_end(self, call: Callable[[], None]) -> None:
        """Call back when the run that was just started has ended."""
        assert self.running
        self.running.add_done_callback(lambda _: call())

    def _tell_end(self, error: ClientError) -> None:
        if isinstance(error, SlowReader):
            return
        if self.machine.phase is Phase.IDLE:
            self.refuse("start", self.hub.public(error))
        else:
            self._tell(self.machine.failed(self.hub.public(error)))

    async def _admitted(self, wait: bool) -> None:
        self.hub.model()
        seconds = None if wait else self.hub.settings.full_seconds
        self._in_line = True
        try:
            await self.hub.admission.enter(self.caller.name, self.caller.streams, seconds, self._tell_ahead)
        finally:
            self._in_line = False
        try:
            self._tell(self.machine.command("start", m.Start()))
            await self._generate()
        finally:
            self.hub.admission.leave(self.caller.name)

    def _tell_ahead(self, ahead: int) -> None:
        self.audience.tell(Message("waiting", {"ahead": ahead}))

    async def _generate(self) -> None:
        settings = self.hub.settings
        file = self.machine.mode == "file"
        self.cadence.interrupted()
        pacer = Pacer(self.form.fps, time.monotonic) if file or self.form.paced else None
        output = Output(self.id, self.form, self.audience, self.cadence, pacer)

        async def deliver(piece: LivePiece, edited: Edited) -> None:
            self._keeps_up = pacer is not None and edited.seconds < piece.source.real / self.form.fps
            await self._deliver(output, piece, edited)

        generation = Generation(self.machine, self.buffer, self._changed, self._told, deliver, self._may_be_ahead)
        limits = Limits(settings.in_flight, SLOT_SECONDS, settings.chunk_seconds)
        server = connect(settings.triton, settings.model, seed=self.machine.seed, limits=limits)
        size = self.machine.info.shape(1)[2:4]
        async with server as session, filled(self._path if file else None, size, self.buffer, self._changed):
            try:
                await generation.run(session)
            finally:
                self._generated = True

    def _may_be_ahead(self) -> int:
        """Chunks that may be on their way: a second one raises the throughput, and a live picture's lag by a chunk."""
        live = self.machine.mode == "live" and not self.lossless
        return 1 if live or self._keeps_up else self.hub.settings.in_flight

    async def _deliver(self, output: Output, piece: LivePiece, edited: Edited) -> None:
        figures = {
            "frames_in": self.buffer.received,
            "frames_dropped": self.buffer.dropped,
            "queue_depth": len(self.buffer),
        }
        underruns, stalled = self.cadence.underruns, self.cadence.stalled
        timing = await output.show(piece, edited, figures)
        late = self.cadence.underruns > underruns
        self.hub.metrics.delivered(vars(timing), late, self.cadence.stalled - stalled)
        self.chunks += 1
        self.frames += piece.source.real
        self._count()

    def _count(self) -> None:
        metrics, (received, dropped) = self.hub.metrics, self._counted
        metrics.received.inc(self.buffer.received - received)
        metrics.dropped.inc(self.buffer.dropped - dropped)
        self._counted = self.buffer.received, self.buffer.dropped

    def _tell(self, messages: list[Message]) -> None:
        for message in messages:
            self._told(message)

    def _told(self, message: Message) -> None:
        if message.type == "generation_paused" and self.machine.mode == "live":
            self.buffer.clear()
            self.cadence.interrupted()
        self.audience.tell(message)
