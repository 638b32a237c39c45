"""Sessions against the real Triton server, whose fake engines invert every pixel and notice any mixed-up state."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from tritonclient.grpc import service_pb2
from tritonclient.grpc.aio import InferenceServerClient

from fakes.tiny_engines import write_fake_repository
from sana_build.server import Ports, TritonServer
from sana_client import session as session_module
from sana_client import transport as transport_module
from sana_client.errors import (
    ChunkFailed,
    ModelError,
    ServerFull,
    ServerLost,
    ServerStalled,
    TransportError,
    UsageError,
    VideoError,
)
from sana_client.pipeline import edit
from sana_client.protocol import ChunkRequest, StreamInfo
from sana_client.session import Limits, Session, connect

pytestmark = pytest.mark.server

STREAMS = 2
QUICK = Limits(slot_seconds=0.3)
BOTH = pytest.mark.parametrize("transport", ["shm", "message"])


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("session") / "repository"
    write_fake_repository(path, streams=STREAMS)
    return path


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[TritonServer]:
    with TritonServer(repository, Ports.free(), repository.parent / "server.log") as running:
        yield running


@pytest.fixture(scope="module")
def url(server: TritonServer) -> str:
    return server.grpc_url


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    before = ours()
    yield
    assert ours() == before


def ours() -> set[str]:
    """Shared memory regions of clients on this host."""
    return {path.name for path in Path("/dev/shm").glob("sana-frames-*")}


async def registered(url: str) -> list[str]:
    async with InferenceServerClient(url) as client:
        return list((await client.get_system_shared_memory_status()).regions)


def source(session: Session, index: int, seed: int = 0) -> np.ndarray:
    shape = session.info.shape(session.info.frames(index))[1:]
    return np.random.default_rng([seed, index]).integers(0, 256, shape, np.uint8)


async def play(session: Session, chunks: int, seed: int = 0, prompt: str = "invert") -> list[np.ndarray]:
    """Send `chunks` chunks one by one and return what came back."""
    found = []
    for index in range(chunks):
        await session.send(source(session, index, seed), prompt)
        found.append((await session.receive()).frames)
    return found


async def all_slots_are_free(url: str) -> None:
    """As many new streams as the server has slots get going at once."""
    async with connect(url, limits=QUICK) as one, connect(url, limits=QUICK) as two:
        for session in (one, two):
            await play(session, 2)


@BOTH
async def test_frames_come_back_inverted_exactly(url: str, transport: str) -> None:
    async with connect(url, transport=transport) as session:
        assert session.transport.name == transport
        for index, frames in enumerate(await play(session, 4)):
            np.testing.assert_array_equal(frames, 255 - source(session, index))


@BOTH
async def test_two_chunks_in_flight_equal_one_at_a_time(url: str, transport: str) -> None:
    async with connect(url, transport=transport, limits=Limits(in_flight=2)) as session:
        chunks = [source(session, index) for index in range(5)]
        await session.send(chunks[0], "invert")
        for index in range(1, 5):
            await session.send(chunks[index], "invert", last=index == 4)
            np.testing.assert_array_equal((await session.receive()).frames, 255 - chunks[index - 1])
        assert (await session.receive()).index == 4


async def test_auto_is_shared_memory_here_and_says_why_when_it_is_not(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connect(url) as session:
        assert (session.transport.name, session.transport.note) == ("shm", "")
    # What a server on another host sees: nothing by that name.
    monkeypatch.setattr(transport_module, "_key", lambda region: f"/elsewhere_{region.name}")
    async with connect(url) as session:
        assert session.transport.name == "message"
        assert "cannot map this host's shared memory" in session.transport.note
        np.testing.assert_array_equal((await play(session, 1))[0], 255 - source(session, 0))
    with pytest.raises(TransportError, match="cannot map this host's shared memory"):
        async with connect(url, transport="shm"):
            pass
    assert await registered(url) == []


async def test_a_model_that_reads_no_shared_memory_gets_messages(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read_info = session_module.read_info

    async def older(*arguments: Any) -> StreamInfo:
        return replace(await read_info(*arguments), regions="")

    monkeypatch.setattr(session_module, "read_info", older)
    async with connect(url) as session:
        assert "takes frames in messages only" in session.transport.note
        np.testing.assert_array_equal((await play(session, 1))[0], 255 - source(session, 0))
    with pytest.raises(TransportError, match="build its repository again"):
        async with connect(url, transport="shm"):
            pass


async def test_the_server_moves_no_frames_of_a_client_on_its_host(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[service_pb2.ModelInferRequest] = []
    monkeypatch.setattr(Session, "_post", noting(Session._post, requests))
    async with connect(url, transport="shm") as session:
        await play(session, 3)
        frame = prod(session.info.shape(1))
        assert all(request.ByteSize() < frame for request in requests)
        places = {request.parameters["edited_offset"].int64_param for request in requests}
        assert places == {0, 33 * frame}
    await all_slots_are_free(url)


def noting(post: Callable, requests: list) -> Callable:
    """`Session._post`, which also keeps what it is told to send."""

    def noted(self: Session, chunk: ChunkRequest, request: service_pb2.ModelInferRequest, slot: int) -> None:
        if not chunk.close:
            requests.append(request)
        post(self, chunk, request, slot)

    return noted


async def test_a_region_that_is_gone_breaks_the_stream_with_a_reason(url: str) -> None:
    async with connect(url, transport="shm") as session:
        for region in session.transport._regions.values():  # type: ignore[attr-defined]
            Path("/dev/shm", region.name).rename(f"/dev/shm/{region.name}gone")
        with pytest.raises(ChunkFailed, match=r"shared memory sana-frames-\w+ cannot be opened here"):
            await play(session, 1)
        for region in session.transport._regions.values():  # type: ignore[attr-defined]
            Path(f"/dev/shm/{region.name}gone").rename(f"/dev/shm/{region.name}")
    await all_slots_are_free(url)


def test_memory_that_is_not_there_is_refused_before_it_is_used() -> None:
    with pytest.raises(TransportError, match="no room for 1099512 MB"):
        transport_module._reserve("sana-frames-huge", 2**40)


@dataclass(frozen=True)
class Piece:
    index: int
    frames: np.ndarray
    prompt: str = "invert"
    last: bool = False


async def test_edits_of_a_live_source_do_not_wait_for_its_next_frames(url: str) -> None:
    more = asyncio.Event()
    async with connect(url) as session:

        async def camera() -> AsyncIterator[Piece]:
            yield Piece(0, source(session, 0))
            await more.wait()
            yield Piece(1, source(session, 1))
            raise VideoError("the camera broke")

        edits = edit(session, camera())
        async with asyncio.timeout(5):
            assert (await anext(edits))[1].index == 0
        more.set()
        assert (await anext(edits))[1].index == 1
        with pytest.raises(VideoError, match="the camera broke"):
            await anext(edits)


async def test_the_third_chunk_waits_for_the_first_answer_to_be_taken(url: str) -> None:
    async with connect(url, limits=Limits(in_flight=2)) as session:
        for index in range(2):
            await session.send(source(session, index), "invert")
        third = asyncio.create_task(session.send(source(session, 2), "invert"))
        await asyncio.sleep(0.2)
        assert not third.done()
        assert (await session.receive()).index == 0
        assert await third == 2


async def test_the_prompt_can_change_at_every_chunk(url: str) -> None:
    async with connect(url) as session:
        for index, prompt in enumerate(["invert", "keep", "keep", "invert"]):
            frames = source(session, index)
            await session.send(frames, prompt)
            edited = (await session.receive()).frames
            np.testing.assert_array_equal(edited, frames if prompt == "keep" else 255 - frames)


async def test_interleaved_sessions_equal_solo_runs(url: str) -> None:
    async def solo(seed: int) -> list[np.ndarray]:
        # Three streams on two slots: the third waits for one.
        async with connect(url, limits=Limits(slot_seconds=20)) as session:
            return await play(session, 6, seed)

    alone = [await solo(seed) for seed in range(3)]
    together = await asyncio.gather(*(solo(seed) for seed in range(3)))
    for one, mixed in zip(alone, together, strict=True):
        np.testing.assert_array_equal(np.concatenate(one), np.concatenate(mixed))


async def test_a_failed_chunk_is_told_and_the_stream_can_start_again(url: str) -> None:
    async with connect(url) as session:
        await play(session, 2)
        await session.send(source(session, 2), "")
        await session.send(source(session, 3), "invert")
        with pytest.raises(ChunkFailed, match=r"chunk 2 failed .* the prompt is empty"):
            await session.receive()
        with pytest.raises(ChunkFailed):
            await session.send(source(session, 4), "invert")
        await session.restart()
        for index, frames in enumerate(await play(session, 3, seed=1)):
            np.testing.assert_array_equal(frames, 255 - source(session, index, seed=1))
    await all_slots_are_free(url)


async def test_a_failed_first_chunk_frees_its_slot(url: str) -> None:
    with pytest.raises(ChunkFailed):
        async with connect(url) as session:
            await play(session, 1, prompt="")
    await all_slots_are_free(url)


async def test_a_failed_last_chunk_frees_its_slot(url: str) -> None:
    async with connect(url) as session:
        await play(session, 1)
        await session.send(source(session, 1), "", last=True)
    await all_slots_are_free(url)


async def test_a_full_model_table_ends_the_sequence(url: str) -> None:
    async with connect(url) as session:
        await play(session, session.info.max_chunks)
        with pytest.raises(UsageError, match="restart it"):
            await session.send(source(session, 1), "invert")
        await session.restart()
        await play(session, 2)


@BOTH
async def test_leaving_in_the_middle_frees_the_slot_at_once(url: str, transport: str) -> None:
    for _ in range(2):
        async with connect(url, transport=transport) as session:
            await play(session, 1)
            for index in (1, 2):
                await session.send(source(session, index), "invert")
        await all_slots_are_free(url)


@BOTH
async def test_a_cancelled_task_leaves_no_region_and_frees_its_slot(url: str, transport: str) -> None:
    started = asyncio.Event()

    async def live() -> None:
        async with connect(url, transport=transport) as session:
            await play(session, 1)
            for index in (1, 2):
                await session.send(source(session, index), f"slow {transport}")
            started.set()
            await session.receive()
            await asyncio.Event().wait()

    task = asyncio.create_task(live())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await registered(url) == []
    await all_slots_are_free(url)


async def test_a_second_cancellation_does_not_interrupt_the_clean_up(url: str) -> None:
    started = asyncio.Event()

    async def live() -> None:
        async with connect(url, transport="shm") as session:
            await play(session, 1)
            await session.send(source(session, 1), "slow again")
            started.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(live())
    await started.wait()
    task.cancel()
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await registered(url) == []
    await all_slots_are_free(url)


async def test_a_full_server_answers_instead_of_queueing(url: str) -> None:
    async with connect(url) as one, connect(url) as two:
        for session in (one, two):
            await play(session, 1)
        began = time.monotonic()
        with pytest.raises(ServerFull, match=r"all 2 slots of .* are taken"):
            async with connect(url, limits=QUICK) as three:
                await play(three, 1)
        assert time.monotonic() - began < 3
        for session in (one, two):
            await session.send(source(session, 1), "invert")
            np.testing.assert_array_equal((await session.receive()).frames, 255 - source(session, 1))
    await all_slots_are_free(url)


async def test_a_stream_that_waits_gets_the_next_free_slot(url: str) -> None:
    async with connect(url, limits=Limits(slot_seconds=20)) as three:
        async with connect(url) as one, connect(url) as two:
            for session in (one, two):
                await play(session, 1)
            waiting = asyncio.create_task(play(three, 3))
            await asyncio.sleep(0.3)
            assert not waiting.done()
        for index, frames in enumerate(await waiting):
            np.testing.assert_array_equal(frames, 255 - source(three, index))


async def test_fifty_streams_leave_nothing_registered(url: str) -> None:
    for seed in range(50):
        async with connect(url, transport="shm") as session:
            await play(session, 1 + seed % 2, seed)
    assert await registered(url) == []
    await all_slots_are_free(url)


async def test_wrong_frames_are_refused_before_they_are_sent(url: str) -> None:
    async with connect(url) as session:
        with pytest.raises(UsageError, match=r"must be uint8 .*16, 16, 3"):
            await session.send(np.zeros((33, 16, 32, 3), np.uint8), "invert")
        with pytest.raises(UsageError, match="send one first"):
            await session.receive()
        await play(session, 1)


@BOTH
async def test_a_chunk_beyond_its_deadline_is_an_error(url: str, transport: str) -> None:
    async def impatient() -> None:
        async with connect(url, transport=transport, limits=Limits(chunk_seconds=0.005)) as session:
            await play(session, 1)
            await session.send(source(session, 1), f"slow and late {transport}")
            await session.receive()

    with pytest.raises(ServerStalled, match="did not answer chunk 1 within"):
        await impatient()
    await all_slots_are_free(url)


async def test_what_cannot_be_had_is_said(url: str) -> None:
    with pytest.raises(ModelError, match="has no model 'nobody'"):
        async with connect(url, "nobody"):
            pass
    with pytest.raises(ModelError, match="no usable geometry"):
        async with connect(url, "denoiser"):
            pass
    with pytest.raises(UsageError, match="choose one of auto, message, shm"):
        async with connect(url, transport="pigeon"):
            pass
    with pytest.raises(ServerLost, match=r"no Triton server answers at 127\.0\.0\.1:9"):
        async with connect("127.0.0.1:9"):
            pass


async def struck(server: TritonServer, blow: str, limits: Limits, struck_at: list[float]) -> None:
    """A stream whose server process gets `blow` while a chunk is on its way; appends when to `struck_at`."""
    assert server.process
    process = psutil.Process(server.process.pid)
    async with connect(server.grpc_url, transport="shm", limits=limits) as session:
        await play(session, 2)
        await session.send(source(session, 2), "slow")
        getattr(process, blow)()
        struck_at.append(time.monotonic())
        await session.receive()


async def test_a_killed_server_is_told_at_once(repository: Path, tmp_path: Path) -> None:
    with TritonServer(repository, Ports.free(), tmp_path / "server.log") as doomed:
        struck_at: list[float] = []
        with pytest.raises(ServerLost, match="went away"):
            await struck(doomed, "kill", Limits(), struck_at)
        assert time.monotonic() - struck_at[0] < 5
        doomed.kill()


async def test_a_frozen_server_is_told_within_the_deadline(repository: Path, tmp_path: Path) -> None:
    with TritonServer(repository, Ports.free(), tmp_path / "server.log") as frozen:
        struck_at: list[float] = []
        with pytest.raises(ServerStalled, match="did not answer chunk 2 within 1 s"):
            await struck(frozen, "suspend", Limits(chunk_seconds=1), struck_at)
        assert time.monotonic() - struck_at[0] < 10
        frozen.kill()
