"""How frames travel to and from the server: inside the gRPC message, or in shared memory on the same host."""

import os
import secrets
from collections.abc import Awaitable, Callable
from math import prod
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Protocol

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from sana_client.errors import ServerLost, TransportError, choose
from sana_client.offload import copy_frames
from sana_client.protocol import StreamInfo
from sana_client.wire import CALL_SECONDS

FRAMES = "frames"
EDITED = "edited"
LATENT = "latent"
"""Not the client's: the model's stages hand it over there."""

CLEANUP_SECONDS = 2.0
Shape = tuple[int, ...]


class Transport(Protocol):
    """Carries the frames of at most `slots` chunks in flight; `note` says why it is not the one asked for first."""

    name: str
    note: str

    def put(self, request: pb.ModelInferRequest, slot: int, frames: np.ndarray) -> None:
        """Add `frames` (1, F, H, W, 3) uint8 to the request, and where the answer shall go."""

    def take(self, response: pb.ModelInferResponse, slot: int, shape: Shape) -> np.ndarray:
        """A uint8 array of `shape` with the answer's frames, independent of the slot."""

    async def close(self) -> None:
        """Give back whatever is held here and on the server."""


class MessageTransport:
    """Frames as bytes in the gRPC message: works with any server, costs copies at both ends."""

    name = "message"

    def __init__(self, note: str = "") -> None:
        self.note = note

    def put(self, request: pb.ModelInferRequest, slot: int, frames: np.ndarray) -> None:
        request.inputs.add(name=FRAMES, datatype="UINT8", shape=frames.shape)
        request.raw_input_contents.append(frames.tobytes())
        request.outputs.add(name=EDITED)

    def take(self, response: pb.ModelInferResponse, slot: int, shape: Shape) -> np.ndarray:
        data = response.raw_output_contents[0] if response.raw_output_contents else b""
        _check_size(len(data), shape)
        return np.frombuffer(data, np.uint8).reshape(shape)

    async def close(self) -> None:
        """Nothing is held."""


class SharedMemoryTransport:
    """Frames in two POSIX regions, one in and one out, of one slot per chunk in flight; latents in a third.

    A request names their places, and the stages read and write them there; the server itself moves none of them.
    """

    name = "shm"
    note = ""

    def __init__(self, stub: GRPCInferenceServiceStub, info: StreamInfo, slots: int) -> None:
        self._stub = stub
        frames = prod(info.shape(max(info.first_frames, info.steady_frames)))
        sizes = {FRAMES: frames, EDITED: frames, LATENT: info.latent_bytes}
        self._slot_bytes = {tensor: size for tensor, size in sizes.items() if size}
        self._regions: dict[str, SharedMemory] = {}
        try:
            for tensor, size in self._slot_bytes.items():
                self._regions[tensor] = _reserve(info.regions + secrets.token_hex(8), size * slots)
        except TransportError:
            self._unlink()
            raise

    async def register(self) -> None:
        """Make the server map the regions, as its stages will; raises TransportError when it cannot."""
        try:
            for region in self._regions.values():
                request = pb.SystemSharedMemoryRegisterRequest(
                    name=region.name, key=_key(region), byte_size=region.size
                )
                await self._stub.SystemSharedMemoryRegister(request, timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            await self.close()
            raise TransportError(f"the server cannot map this host's shared memory ({error.details()})") from None
        except BaseException:
            await self.close()
            raise

    def put(self, request: pb.ModelInferRequest, slot: int, frames: np.ndarray) -> None:
        copy_frames(self._view(FRAMES, slot, frames.shape), frames)
        for tensor, region in self._regions.items():
            request.parameters[f"{tensor}_region"].string_param = region.name
            request.parameters[f"{tensor}_offset"].int64_param = slot * self._slot_bytes[tensor]
        MessageTransport().put(request, slot, frames[:, :0])

    def take(self, response: pb.ModelInferResponse, slot: int, shape: Shape) -> np.ndarray:
        _check_size(prod(response.outputs[0].shape), (*shape[:1], 0, *shape[2:]))
        edited = np.empty(shape, np.uint8)
        copy_frames(edited, self._view(EDITED, slot, shape))
        return edited

    def _view(self, tensor: str, slot: int, shape: Shape) -> np.ndarray:
        return np.ndarray(shape, np.uint8, self._regions[tensor].buf, offset=slot * self._slot_bytes[tensor])

    async def close(self) -> None:
        """Unregister and unlink the regions; a server that is gone has forgotten them by itself."""
        try:
            for region in self._regions.values():
                request = pb.SystemSharedMemoryUnregisterRequest(name=region.name)
                await self._stub.SystemSharedMemoryUnregister(request, timeout=CLEANUP_SECONDS)
        except grpc.aio.AioRpcError:
            return
        finally:
            self._unlink()

    def _unlink(self) -> None:
        while self._regions:
            _, region = self._regions.popitem()
            region.close()
            region.unlink()


def _reserve(name: str, size: int) -> SharedMemory:
    """A new region whose memory is really there: a sparse one would end this process at the first write beyond it."""
    try:
        region = SharedMemory(name, create=True, size=size)
    except OSError as error:
        raise TransportError(f"this host has no POSIX shared memory ({error})") from None
    try:
        with Path("/dev/shm", region.name).open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        region.close()
        region.unlink()
        raise TransportError(f"/dev/shm has no room for {size / 1e6:.0f} MB of frames ({error.strerror})") from None
    return region


def _key(region: SharedMemory) -> str:
    """The name by which another process on this host finds the region."""
    return f"/{region.name}"


def _check_size(size: int, shape: Shape) -> None:
    if size != prod(shape):
        raise ServerLost(f"the server answered {size} bytes instead of frames of shape {shape}: check its model")


async def _message(stub: GRPCInferenceServiceStub, info: StreamInfo, slots: int) -> Transport:
    return MessageTransport()


async def _shared_memory(stub: GRPCInferenceServiceStub, info: StreamInfo, slots: int) -> Transport:
    if not info.regions:
        raise TransportError(f"model {info.model!r} takes frames in messages only: build its repository again")
    transport = SharedMemoryTransport(stub, info, slots)
    await transport.register()
    return transport


async def _best(stub: GRPCInferenceServiceStub, info: StreamInfo, slots: int) -> Transport:
    try:
        return await _shared_memory(stub, info, slots)
    except TransportError as error:
        return MessageTransport(note=str(error))


Opener = Callable[[GRPCInferenceServiceStub, StreamInfo, int], Awaitable[Transport]]
TRANSPORTS: dict[str, Opener] = {"auto": _best, "message": _message, "shm": _shared_memory}


async def open_transport(name: str, stub: GRPCInferenceServiceStub, info: StreamInfo, slots: int) -> Transport:
    """The transport called `name`; raises UsageError for an unknown name, TransportError when it cannot be had."""
    return await choose("transport", name, TRANSPORTS)(stub, info, slots)
