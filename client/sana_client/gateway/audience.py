"""Who sees a session: its owner, who may hold it back for a while, and spectators, who may not."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from sana_client.errors import ClientError
from sana_client.gateway.framing import Packed
from sana_client.gateway.machine import Message
from sana_client.gateway.signal import Signal

NOTES = 256
"""Small messages that may wait for a client that does not read."""


class SlowReader(ClientError):
    """A client that does not take its messages."""


class Wire(Protocol):
    """Writes to one client; `packs` tells whether it sends a chunk as messages, and not as pictures."""

    packs: bool

    async def map(self, found: dict[str, Any]) -> None:
        """Send one small message."""

    async def chunk(self, chunk: "OutChunk") -> None:
        """Send the frames of a chunk."""


@dataclass(frozen=True, eq=False)
class OutChunk:
    """A chunk on its way: uint8 frames (F, H, W, 3), their messages, and the statistics that follow when written.

    `arrived` is when each of its source frames came, on the gateway's clock (seconds).
    """

    frames: np.ndarray
    arrived: tuple[float, ...]
    packed: Packed
    stats: Callable[[int], dict[str, Any]]


@dataclass(eq=False)
class Outbox:
    """Messages to one client in order, at most one finished chunk waiting among them."""

    wire: Wire
    stall_seconds: float
    on_written: Callable[[float], None] = lambda seconds: None
    _queue: deque[dict[str, Any] | OutChunk] = field(default_factory=deque)
    _chunks: int = 0
    _changed: Signal = field(default_factory=Signal)
    _closing: bool = False

    def post(self, found: dict[str, Any]) -> None:
        """Queue a small message; raises SlowReader when too many wait."""
        if len(self._queue) >= NOTES:
            raise SlowReader(f"{NOTES} messages wait for a client that does not read them")
        self._queue.append(found)
        self._changed.notify()

    async def post_chunk(self, chunk: OutChunk) -> None:
        """Queue a chunk as soon as none waits; raises SlowReader when that takes too long."""
        try:
            async with asyncio.timeout(self.stall_seconds):
                await self._changed.until(lambda: not self._chunks)
        except TimeoutError:
            raise SlowReader(f"a client took no frames for {self.stall_seconds:.0f} s: it was cut off") from None
        self._put(chunk)

    def offer_chunk(self, chunk: OutChunk) -> None:
        """Queue a chunk now; raises SlowReader when an earlier one still waits."""
        if self._chunks > 1:
            raise SlowReader("a spectator is too slow: it was cut off")
        self._put(chunk)

    def _put(self, chunk: OutChunk) -> None:
        self._chunks += 1
        self._queue.append(chunk)
        self._changed.notify()

    def finish(self) -> None:
        """End `run` once everything queued is written."""
        self._closing = True
        self._changed.notify()

    async def run(self) -> None:
        """Write until `finish`; raises SlowReader, or whatever the wire raises for a client that is gone."""
        while True:
            await self._changed.until(lambda: self._queue or self._closing)
            if not self._queue:
                return
            try:
                async with asyncio.timeout(self.stall_seconds):
                    await self._write(self._queue.popleft())
            except TimeoutError:
                raise SlowReader(f"a client took nothing for {self.stall_seconds:.0f} s: it was cut off") from None

    async def _write(self, item: dict[str, Any] | OutChunk) -> None:
        if isinstance(item, dict):
            await self.wire.map(item)
            return
        self._chunks -= 1
        self._changed.notify()
        began = time.monotonic()
        await self.wire.chunk(item)
        seconds = time.monotonic() - began
        await self.wire.map(item.stats(round(seconds * 1e3)))
        self.on_written(seconds)


@dataclass
class Audience:
    """One session's viewers. `speaks` tells whether its owner wants session messages besides frames."""

    owner: Outbox
    speaks: bool
    newcomers: bool = False
    _spectators: set[Outbox] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self._spectators)

    @property
    def packs(self) -> bool:
        """Whether anybody needs the messages of a chunk."""
        return self.owner.wire.packs or bool(self._spectators)

    def join(self, spectator: Outbox) -> None:
        """Add a spectator, who is sent away when too slow."""
        self._spectators.add(spectator)
        self.newcomers = True

    def leave(self, spectator: Outbox) -> None:
        self._spectators.discard(spectator)

    def tell(self, message: Message) -> None:
        """Send a session message to whom it concerns; raises SlowReader if the owner does not read."""
        found = {"type": message.type, "data": message.data}
        if self.speaks:
            self.owner.post(found)
        if message.broadcast:
            self._each(lambda spectator: spectator.post(found))

    async def show(self, chunk: OutChunk) -> None:
        """Send a chunk to everybody, at the owner's speed; raises SlowReader if the owner is too slow for long."""
        await self.owner.post_chunk(chunk)
        self._each(lambda spectator: spectator.offer_chunk(chunk))

    def finish(self) -> None:
        """Let every spectator go after what is queued."""
        self._each(lambda spectator: spectator.finish())

    def _each(self, send: Callable[[Outbox], None]) -> None:
        for spectator in list(self._spectators):
            try:
                send(spectator)
            except SlowReader:
                self.leave(spectator)
                spectator.finish()
