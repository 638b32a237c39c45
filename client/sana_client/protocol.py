"""The stream protocol without any I/O: the chunk grid, the order of chunks and answers, and what errors mean."""

import re
import secrets
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from sana_client.errors import ChunkFailed, ClientError, ModelError, SequenceLost, ServerFull, ServerLost, UsageError

GEOMETRY = ("first_frames", "steady_frames", "height", "width", "max_chunks")
CLOSE_ID = "close"


@dataclass(frozen=True)
class StreamInfo:
    """What a served ensemble says about itself; `streams` counts slots, `stages` are its models in order.

    `regions` is what names of shared memory begin with that it reads frames from, empty if it reads messages only;
    `latent_bytes` is the room that its stages need there to hand over a chunk's latents, 0 if they do so in messages.
    """

    model: str
    first_frames: int
    steady_frames: int
    height: int
    width: int
    max_chunks: int
    streams: int
    stages: tuple[str, ...]
    regions: str = ""
    latent_bytes: int = 0

    @classmethod
    def from_parameters(
        cls, model: str, parameters: Mapping[str, str], streams: int, stages: tuple[str, ...]
    ) -> "StreamInfo":
        """Read the geometry of an ensemble; raises ModelError naming the parameter that is missing or no number."""
        try:
            sizes = {name: int(parameters[name]) for name in GEOMETRY}
            sizes["latent_bytes"] = int(parameters.get("latent_bytes", 0))
        except (KeyError, ValueError) as error:
            raise ModelError(
                f"model {model!r} has no usable geometry parameter ({error}): choose an ensemble built by sana-build"
            ) from None
        return cls(model=model, streams=streams, stages=stages, regions=parameters.get("regions", ""), **sizes)

    def frames(self, index: int) -> int:
        """Pixel frames of the chunk at `index`."""
        return self.first_frames if index == 0 else self.steady_frames

    def shape(self, frames: int) -> tuple[int, int, int, int, int]:
        """(1, F, H, W, 3), the uint8 tensor of `frames` RGB frames."""
        return 1, frames, self.height, self.width, 3


@dataclass(frozen=True)
class ChunkRequest:
    """One request of a sequence: chunk `index`, its flags, and how many frames it carries."""

    index: int
    frames: int
    start: bool
    end: bool
    close: bool = False

    @property
    def id(self) -> str:
        return CLOSE_ID if self.close else str(self.index)


CLOSE = ChunkRequest(index=0, frames=1, start=True, end=True, close=True)
"""Ends a sequence in every stage whatever state it is in, and runs no engine."""


def new_correlation_id() -> int:
    """A random positive 63-bit id, so that late chunks of an earlier life can never mix with a new one."""
    return secrets.randbits(63) or 1


@dataclass
class Sequence:
    """Order of one sequence: which chunk comes next, and which chunk an answer belongs to.

    `ended` means that nothing more may be sent, `freed` that the server has confirmed the end in every stage.
    """

    info: StreamInfo
    correlation_id: int = field(default_factory=new_correlation_id)
    sent: int = 0
    ended: bool = False
    freed: bool = False
    waiting: deque[ChunkRequest] = field(default_factory=deque)

    def next(self, frames: int, last: bool = False) -> ChunkRequest:
        """The request for the next chunk; raises UsageError for a wrong frame count or a stream that has ended."""
        if self.ended:
            raise UsageError(f"the stream ended with chunk {self.sent - 1}: restart it to send more")
        expected = self.info.frames(self.sent)
        if frames != expected:
            raise UsageError(f"chunk {self.sent} has {frames} frames: it must have {expected}")
        end = last or self.sent == self.info.max_chunks - 1
        request = ChunkRequest(self.sent, frames, start=self.sent == 0, end=end)
        self._expect(request)
        return request

    def close(self) -> ChunkRequest:
        """The request that frees the sequence."""
        self._expect(CLOSE)
        return CLOSE

    def _expect(self, request: ChunkRequest) -> None:
        self.waiting.append(request)
        self.sent += not request.close
        self.ended = request.end

    def answered(self, request_id: str, failed: bool = False) -> ChunkRequest:
        """The request an answer belongs to (answers keep order); raises ServerLost when the server mixed them up."""
        if not self.waiting or self.waiting[0].id != request_id:
            expected = self.waiting[0].id if self.waiting else "nothing"
            raise ServerLost(f"the server answered {request_id or 'without an id'} where {expected} was due: reconnect")
        request = self.waiting.popleft()
        self.freed = request.end and not failed
        return request


ENSEMBLE = re.compile(r"^in ensemble '[^']*', ")
REQUEST_ID = re.compile(r"^\[request id: [^\]]*\] ")


def explain(text: str, request: ChunkRequest, info: StreamInfo, server: str) -> ClientError:
    """The error a person should see for Triton's `text` about `request`."""
    message = REQUEST_ID.sub("", ENSEMBLE.sub("", text)).strip().rstrip(".")
    what = "closing the stream" if request.close else f"chunk {request.index}"
    if "timeout of the corresponding sequence has been expired" in text:
        return ServerFull(f"all {info.streams} slots of {server} are taken: try again when another stream has ended")
    if "must specify the START flag" in text:
        return SequenceLost(
            f"{server} no longer knows this stream at {what}, it was idle for too long or the model was reloaded: "
            f"restart the stream"
        )
    if "is not healthy" in text:
        return ServerLost(f"a model process of {server} has died at {what} ({message}): restart the server")
    if "Server is stopping" in text:
        return ServerLost(f"{server} is stopping and takes no new streams: use another server")
    if "is not found" in text:
        return ModelError(f"{server} has no model {info.model!r} any more: it was unloaded")
    return ChunkFailed(f"{what} failed on {server}: {message or 'the server gave no reason'}")
