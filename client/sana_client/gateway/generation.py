"""One run of a session from start to end: chunks formed at boundaries, edited by the server, handed on in order."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from sana_client.errors import SequenceLost
from sana_client.gateway.edge import FrameBuffer, Gathered
from sana_client.gateway.machine import ChunkPlan, Machine, Message, Phase
from sana_client.gateway.signal import Signal
from sana_client.offload import off_loop
from sana_client.pipeline import edit
from sana_client.session import Edited, Session

Tell = Callable[[Message], None]


@dataclass(frozen=True, eq=False)
class LivePiece:
    """A chunk sent to the server: its plan, its source frames, and how long they took to gather (seconds)."""

    plan: ChunkPlan
    source: Gathered
    last: bool
    prepared: float

    @property
    def index(self) -> int:
        return self.plan.position

    @property
    def frames(self) -> np.ndarray:
        return self.source.pixels

    @property
    def prompt(self) -> str:
        return self.plan.prompt


Deliver = Callable[[LivePiece, Edited], Awaitable[None]]


@dataclass
class Generation:
    """Drives `machine` over a session with the server until the source, the chunks or somebody ends it.

    `ahead` says how many chunks may be on their way; it is asked before each one.
    """

    machine: Machine
    buffer: FrameBuffer
    changed: Signal
    tell: Tell
    deliver: Deliver
    ahead: Callable[[], int]
    _sent: list[LivePiece] = field(default_factory=list)

    async def run(self, session: Session) -> None:
        """Generate; returns when the session is idle again, raises ClientError when the server fails."""
        while True:
            try:
                await self._stream(session)
                return
            except SequenceLost:
                # The server forgets a stream that pauses for long; the session goes on from its next frames.
                self.buffer.dropped += sum(piece.source.real for piece in self._sent)
                self._sent.clear()
                self.machine.anchor()
                await session.restart()

    async def _stream(self, session: Session) -> None:
        async for piece, edited in edit(session, self._pieces(session)):
            if self.machine.phase is not Phase.IDLE:
                await self.deliver(piece, edited)
                self._tell([self.machine.chunk_complete(piece.plan, piece.source.real)])
            self._sent.remove(piece)
            self.changed.notify()
        if self.machine.phase is not Phase.IDLE:
            self._tell(self.machine.complete())

    async def _pieces(self, session: Session) -> AsyncIterator[LivePiece]:
        while await self._boundary(session):
            began = time.monotonic()
            needed = self.machine.frames_needed
            plan, told = self.machine.begin_chunk()
            self._tell(told)
            source = self.buffer.take(needed)
            self.changed.notify()
            await off_loop(source.nbytes, partial(getattr, source, "pixels"))
            piece = LivePiece(plan, source, plan.last or self.buffer.finished, time.monotonic() - began)
            self._sent.append(piece)
            yield piece
            if piece.last:
                return

    async def _boundary(self, session: Session) -> bool:
        """Wait until the next chunk can begin; False when there is none. Raises what broke the session meanwhile."""
        while True:
            if session.broken:
                raise session.broken
            self._tell(self.machine.settle())
            if self.machine.phase is Phase.IDLE or self.buffer.finished:
                return False
            if self._can_begin():
                return True
            await self.changed.until(lambda: self._something_to_do() or session.broken)

    def _can_begin(self) -> bool:
        running = self.machine.phase is Phase.RUNNING
        return running and len(self._sent) < self.ahead() and self.buffer.ready(self.machine.frames_needed)

    def _something_to_do(self) -> bool:
        return self._can_begin() or self.machine.unsettled or self.buffer.finished

    def _tell(self, messages: list[Message]) -> None:
        for message in messages:
            self.tell(message)
