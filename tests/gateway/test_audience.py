"""Who holds a session back and who does not: owners, spectators, and readers that do not read."""

import asyncio
from typing import Any

import numpy as np
import pytest

from sana_client.gateway.audience import NOTES, Audience, Outbox, OutChunk, SlowReader
from sana_client.gateway.framing import Packed
from sana_client.gateway.machine import Message


class Reader:
    """A client that takes what it is sent while `open` is set."""

    packs = True

    def __init__(self) -> None:
        self.got: list[Any] = []
        self.open = asyncio.Event()
        self.open.set()

    async def map(self, found: dict[str, Any]) -> None:
        await self.open.wait()
        self.got.append(found["type"])

    async def chunk(self, chunk: OutChunk) -> None:
        await self.open.wait()
        self.got.append(int(chunk.frames[0, 0, 0, 0]))


def chunk(number: int) -> OutChunk:
    packed = Packed([b"x"], 1, 1, 1, 1, "image/jpeg")
    return OutChunk(np.full((1, 1, 1, 3), number, np.uint8), (0.0,), packed, lambda written: {"type": "chunk_stats"})


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_chunks_and_messages_keep_their_order() -> None:
    reader = Reader()
    outbox = Outbox(reader, 1)
    await outbox.post_chunk(chunk(1))
    outbox.post({"type": "state"})
    writing = asyncio.create_task(outbox.run())
    await outbox.post_chunk(chunk(2))
    outbox.finish()
    await writing
    assert reader.got == [1, "chunk_stats", "state", 2, "chunk_stats"]


async def test_at_most_one_finished_chunk_waits() -> None:
    reader = Reader()
    reader.open.clear()
    outbox = Outbox(reader, 5)
    writing = asyncio.create_task(outbox.run())
    await outbox.post_chunk(chunk(1))
    await settle()
    await outbox.post_chunk(chunk(2))
    third = asyncio.create_task(outbox.post_chunk(chunk(3)))
    await settle()
    assert not third.done()
    reader.open.set()
    await third
    outbox.finish()
    await writing
    assert reader.got == [1, "chunk_stats", 2, "chunk_stats", 3, "chunk_stats"]


async def test_an_owner_that_takes_nothing_is_cut_off() -> None:
    reader = Reader()
    reader.open.clear()
    outbox = Outbox(reader, 0.05)
    writing = asyncio.create_task(outbox.run())
    await outbox.post_chunk(chunk(1))
    with pytest.raises(SlowReader, match="took nothing"):
        await writing
    await outbox.post_chunk(chunk(2))
    with pytest.raises(SlowReader, match="took no frames"):
        await outbox.post_chunk(chunk(3))


async def test_small_messages_are_bounded_too() -> None:
    outbox = Outbox(Reader(), 1)
    for _ in range(NOTES):
        outbox.post({"type": "state"})
    with pytest.raises(SlowReader, match="does not read"):
        outbox.post({"type": "state"})


async def test_a_slow_spectator_is_cut_off_and_nobody_waits_for_it() -> None:
    readers = [Reader() for _ in range(3)]
    readers[2].open.clear()
    owner, quick, slow = boxes = [Outbox(reader, 5) for reader in readers]
    writing = [asyncio.create_task(box.run()) for box in boxes]
    audience = Audience(owner, speaks=True)
    for spectator in (quick, slow):
        audience.join(spectator)
    for number in range(5):
        await audience.show(chunk(number))
        await settle()
    assert len(audience) == 1
    for reader in readers[:2]:
        assert reader.got == [item for number in range(5) for item in (number, "chunk_stats")]
    readers[2].open.set()
    await writing[2]
    assert len(readers[2].got) < len(readers[1].got)
    for task in writing:
        task.cancel()


async def test_spectators_hear_what_concerns_everybody() -> None:
    owner, spectator, silent = Reader(), Reader(), Reader()
    boxes = [Outbox(reader, 1) for reader in (owner, spectator, silent)]
    talking, quiet = Audience(boxes[0], speaks=True), Audience(boxes[2], speaks=False)
    talking.join(boxes[1])
    for message in (Message("prompt_accepted"), Message("state")):
        talking.tell(message)
        quiet.tell(message)
    for box in boxes:
        box.finish()
        await box.run()
    assert (owner.got, spectator.got, silent.got) == (["prompt_accepted", "state"], ["state"], [])
