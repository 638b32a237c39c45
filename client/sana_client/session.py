"""One live stream on a server: send chunks of frames, receive them edited, in order, a few in flight."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from math import prod

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from sana_client.errors import ClientError, ServerLost, ServerStalled, UsageError
from sana_client.offload import off_loop, uninterrupted
from sana_client.protocol import ChunkRequest, Sequence, StreamInfo, explain
from sana_client.transport import MessageTransport, Transport, open_transport
from sana_client.wire import CHANNEL_OPTIONS, infer_request, read_info, read_statistics, wait_for_slot

CLOSE_SLOT_SECONDS = 0.2
DEAD_SECONDS = 1.0


@dataclass(frozen=True)
class Limits:
    """How much a session sends ahead, and how long it waits (seconds) for a slot and for the answer to a chunk."""

    in_flight: int = 2
    slot_seconds: float = 5.0
    chunk_seconds: float = 120.0

    def __post_init__(self) -> None:
        if self.in_flight < 1:
            raise UsageError(f"{self.in_flight} chunks in flight cannot work: choose 1 or more")


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Edited:
    """The answer to chunk `index`: uint8 `frames` (F, H, W, 3), `seconds` after it was sent."""

    index: int
    frames: np.ndarray
    seconds: float


@dataclass
class _Sent:
    """A request on its way, and the answer it waits for."""

    request: ChunkRequest
    slot: int
    time: float
    answer: asyncio.Future[tuple[pb.ModelInferResponse, float]] = field(default_factory=asyncio.Future)


class Session:
    """A stream on one gRPC connection. Use `connect`, which frees the server's slot on every way out."""

    def __init__(
        self,
        stub: GRPCInferenceServiceStub,
        info: StreamInfo,
        transport: Transport,
        server: str,
        seed: int = 0,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self.info = info
        self.transport = transport
        self._stub = stub
        self._limits = limits
        self._server = server
        self._seed = seed
        self._sequence = Sequence(info)
        self._slots = deque(range(limits.in_flight))
        self._waiting: deque[_Sent] = deque()
        self._changed = asyncio.Condition()
        self._broken: ClientError | None = None
        self._lost: ServerLost | None = None
        self._outgoing: asyncio.Queue[pb.ModelInferRequest | None] = asyncio.Queue()
        # Requests go through a queue and answers through a task, so that a cancelled caller never cancels the call:
        # the server would forget the sequence in some stages and keep its slot in others.
        self._call = stub.ModelStreamInfer(self._requests())
        self._reader = asyncio.create_task(self._read())

    @property
    def chunks(self) -> int:
        """Chunks sent since the last start."""
        return self._sequence.sent

    @property
    def broken(self) -> ClientError | None:
        """What broke the stream, None while it works; it shows without anything being sent."""
        return self._broken

    async def send(self, frames: np.ndarray, prompt: str, last: bool = False) -> int:
        """Send the next chunk, uint8 (F, H, W, 3), as soon as fewer than `in_flight` are unanswered; its index.

        `last` ends the stream with this chunk. Raises UsageError for wrong frames, or what broke the stream before.
        """
        if frames.dtype != np.uint8 or frames.shape[1:] != self.info.shape(0)[2:]:
            raise UsageError(f"frames are {frames.dtype} {frames.shape}: they must be uint8 {self.info.shape(0)[2:]}")
        async with self._changed:
            await self._changed.wait_for(lambda: self._slots or self._broken)
        self._check()
        chunk = self._sequence.next(len(frames), last)
        request = self._request(chunk, prompt)
        if chunk.start:
            request.parameters["seed"].int64_param = self._seed
            wait_for_slot(request, self._limits.slot_seconds)
        slot = self._slots.popleft()
        try:
            await off_loop(frames.nbytes, lambda: self.transport.put(request, slot, frames[None]))
            self._check()
        except BaseException:
            self._slots.append(slot)
            raise
        self._post(chunk, request, slot)
        return chunk.index

    async def receive(self) -> Edited:
        """The oldest unanswered chunk, edited; raises what broke the stream, within the deadline of a chunk."""
        if not self._waiting:
            self._check()
            raise UsageError("no chunk is in flight: send one first")
        sent = self._waiting[0]
        try:
            response, arrived = await self._answer(sent)
            shape = self.info.shape(sent.request.frames)
            frames = (await off_loop(prod(shape), lambda: self.transport.take(response, sent.slot, shape)))[0]
        except ClientError as error:
            self._broken = error
            raise
        finally:
            if sent.answer.done():
                await self._release(sent)
        return Edited(sent.request.index, frames, arrived - sent.time)

    async def drained(self) -> None:
        """Wait until another task has received every chunk in flight; raises what broke the stream."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._waiting or self._broken)
        self._check()

    async def restart(self) -> None:
        """Drop unanswered chunks, free the slot, and let the next chunk be chunk 0 of a new sequence."""
        await self.end()
        if self._lost:
            raise self._lost
        self._sequence = Sequence(self.info)
        self._broken = None

    async def end(self) -> None:
        """Free the stream's slot in every stage; harmless when it is free already or the server is gone."""
        if self._sequence.sent and not self._sequence.freed and not self._lost:
            self._close_sequence()
        wait = DEAD_SECONDS if isinstance(self._broken, ServerStalled) else self._limits.chunk_seconds
        while self._waiting:
            sent = self._waiting[0]
            await asyncio.wait([sent.answer], timeout=wait)
            if not sent.answer.done():
                self._lose(ServerStalled(f"{self._server} did not answer within {wait:.0f} s: the stream was dropped"))
            sent.answer.exception()
            await self._release(sent)

    async def statistics(self) -> pb.ModelStatisticsResponse:
        """The server's own counters of every model; raises ServerLost."""
        return await read_statistics(self._stub, self._server)

    async def disconnect(self) -> None:
        """Close the gRPC stream; the session cannot be used afterwards."""
        self._outgoing.put_nowait(None)
        await asyncio.wait([self._reader], timeout=DEAD_SECONDS)
        self._call.cancel()
        await asyncio.wait([self._reader])

    def _close_sequence(self) -> None:
        chunk = self._sequence.close()
        request = self._request(chunk, "")
        # Where a stage does not know the sequence, closing needs a slot there for a moment, which may be taken.
        wait_for_slot(request, CLOSE_SLOT_SECONDS)
        MessageTransport().put(request, 0, np.zeros(self.info.shape(chunk.frames), np.uint8))
        self._post(chunk, request, slot=-1)

    def _request(self, chunk: ChunkRequest, prompt: str) -> pb.ModelInferRequest:
        return infer_request(self.info.model, self._sequence.correlation_id, chunk, prompt)

    def _post(self, chunk: ChunkRequest, request: pb.ModelInferRequest, slot: int) -> None:
        self._waiting.append(_Sent(chunk, slot, time.monotonic()))
        self._outgoing.put_nowait(request)

    async def _requests(self) -> AsyncIterator[pb.ModelInferRequest]:
        while (request := await self._outgoing.get()) is not None:
            yield request

    async def _read(self) -> None:
        try:
            async for response in self._call:
                self._resolve(response)
            self._lose(ServerLost(f"{self._server} ended the stream: connect again"))
        except grpc.aio.AioRpcError as error:
            self._lose(ServerLost(f"{self._server} went away ({error.details()}): connect again when it is back"))
        except asyncio.CancelledError:
            self._lose(ServerLost(f"the stream to {self._server} was closed"))
        except ServerLost as error:
            self._lose(error)

    def _resolve(self, response: pb.ModelStreamInferResponse) -> None:
        request = self._sequence.answered(response.infer_response.id, bool(response.error_message))
        sent = next(sent for sent in self._waiting if not sent.answer.done())
        if response.error_message:
            sent.answer.set_exception(explain(response.error_message, request, self.info, self._server))
        else:
            sent.answer.set_result((response.infer_response, time.monotonic()))

    def _lose(self, error: ServerLost) -> None:
        self._lost = self._lost or error
        self._broken = self._broken or error
        for sent in self._waiting:
            if not sent.answer.done():
                sent.answer.set_exception(error)

    def _check(self) -> None:
        if self._broken:
            raise self._broken

    async def _answer(self, sent: _Sent) -> tuple[pb.ModelInferResponse, float]:
        seconds = self._limits.chunk_seconds + (self._limits.slot_seconds if sent.request.start else 0)
        try:
            return await asyncio.wait_for(asyncio.shield(sent.answer), seconds)
        except TimeoutError:
            raise ServerStalled(
                f"{self._server} did not answer chunk {sent.request.index} within {seconds:.0f} s: "
                f"look at its log, or allow more time"
            ) from None

    async def _release(self, sent: _Sent) -> None:
        self._waiting.popleft()
        if sent.slot >= 0:
            self._slots.append(sent.slot)
        async with self._changed:
            self._changed.notify_all()


@asynccontextmanager
async def connect(
    server: str,
    model: str = "sana_streaming",
    *,
    seed: int = 0,
    transport: str = "auto",
    limits: Limits = DEFAULT_LIMITS,
) -> AsyncIterator[Session]:
    """A session with ensemble `model` at gRPC address `server` ("host:port"); frees everything on every way out.

    Raises ServerLost, ModelError, TransportError or UsageError. `transport` is "auto", "shm" or "message"; what "auto"
    chose is in `session.transport`. A slot is taken by the first chunk, not before.
    """
    async with grpc.aio.insecure_channel(server, options=CHANNEL_OPTIONS) as channel:
        stub = GRPCInferenceServiceStub(channel)
        info = await read_info(stub, model, server)
        frames = await open_transport(transport, stub, info, limits.in_flight)
        session = Session(stub, info, frames, server, seed, limits)
        try:
            yield session
        finally:
            await uninterrupted(_finish(session))


async def _finish(session: Session) -> None:
    try:
        await session.end()
        await session.disconnect()
    finally:
        await session.transport.close()
