"""A stream of chunks through a session: sending and receiving overlap, and a full model table starts a new sequence."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from sana_client.session import Edited, Session


class Outgoing(Protocol):
    """What is sent for one chunk: `index` counts from 0 in each sequence, `frames` are uint8 (F, H, W, 3)."""

    @property
    def index(self) -> int: ...
    @property
    def frames(self) -> np.ndarray: ...
    @property
    def prompt(self) -> str: ...
    @property
    def last(self) -> bool: ...


@dataclass(frozen=True)
class Piece:
    """A chunk to send that is nothing more than that."""

    index: int
    frames: np.ndarray
    prompt: str
    last: bool


P = TypeVar("P", bound=Outgoing)


async def edit(session: Session, pieces: AsyncIterator[P]) -> AsyncIterator[tuple[P, Edited]]:
    """Every piece with its edit, in order, each as soon as it is there; what stops `pieces` is raised after the last.

    A piece with index 0 that is not the first starts a new sequence, once all earlier pieces are answered.
    """
    sent: asyncio.Queue[P | None] = asyncio.Queue()
    feeder = asyncio.create_task(_feed(session, pieces, sent))
    try:
        while (piece := await sent.get()) is not None:
            yield piece, await session.receive()
        await feeder
    finally:
        feeder.cancel()
        await asyncio.gather(feeder, return_exceptions=True)


async def _feed(session: Session, pieces: AsyncIterator[P], sent: "asyncio.Queue[P | None]") -> None:
    try:
        async for piece in pieces:
            if piece.index == 0 and session.chunks:
                await session.drained()
                await session.restart()
            await session.send(piece.frames, piece.prompt, piece.last)
            sent.put_nowait(piece)
    finally:
        sent.put_nowait(None)
