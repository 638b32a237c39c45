"""What all sessions of a gateway share: the served model, its slots, media, metrics, and who is live."""

import asyncio
import json
import logging
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from sana_client.errors import ClientError, ServerLost
from sana_client.gateway.admission import Admission
from sana_client.gateway.media import MediaStore
from sana_client.gateway.metrics import Metrics
from sana_client.gateway.settings import Settings
from sana_client.protocol import StreamInfo
from sana_client.wire import CHANNEL_OPTIONS, read_info, read_statistics

if TYPE_CHECKING:
    from sana_client.gateway.live import LiveSession

CHECK_SECONDS = 1.0

log = logging.getLogger("sana_gateway")


def log_event(event: str, **fields: Any) -> None:
    """One line of JSON: what happened, to which session, with which figures; never frames, prompts or tokens."""
    log.info(json.dumps({"time": round(time.time(), 3), "event": event, **fields}))


@dataclass
class Hub:
    """The gateway's own state. `info` is None while the model server cannot be reached, and `trouble` says why."""

    settings: Settings
    metrics: Metrics = field(default_factory=Metrics)
    info: StreamInfo | None = None
    trouble: str = "the gateway has only just started"
    draining: bool = False
    sessions: "dict[str, LiveSession]" = field(default_factory=dict)
    admission: Admission = field(init=False)
    media: MediaStore = field(init=False)

    def __post_init__(self) -> None:
        settings = self.settings
        self.admission = Admission(0, settings.line)
        self.media = MediaStore(settings.folder, settings.media, settings.uploads, settings.frame_pixels)

    def model(self) -> StreamInfo:
        """The served model; raises ServerLost while there is none."""
        if self.draining:
            raise ServerLost("the gateway is stopping: use another one, or try again in a minute")
        if self.info is None:
            raise ServerLost(f"the model is not ready ({self.trouble}): try again in a moment")
        return self.info

    async def watch(self) -> None:
        """Keep `info` up to date for ever, and have sessions that wait for frames look after their connection."""
        while True:
            await self.refresh()
            for session in self.sessions.values():
                session.wake()
            await asyncio.sleep(CHECK_SECONDS)

    async def refresh(self) -> None:
        """Ask the model server once."""
        try:
            # With the options of a session's channel it also shares its connection, and what it finds holds for both.
            async with grpc.aio.insecure_channel(self.settings.triton, options=CHANNEL_OPTIONS) as channel:
                stub = GRPCInferenceServiceStub(channel)
                info = await read_info(stub, self.settings.model, self.settings.triton)
                self.metrics.stages.heard = await read_statistics(stub, self.settings.triton)
        except ClientError as error:
            self._set(None, self.public(error))
        else:
            self._set(info, "")

    def public(self, error: ClientError) -> str:
        """The text of an error without the address of the model server."""
        return str(error).replace(self.settings.triton, "the model server")

    def _set(self, info: StreamInfo | None, trouble: str) -> None:
        if info != self.info:
            log_event("model", ready=info is not None, trouble=trouble)
        self.info, self.trouble = info, trouble
        if info and info.streams != self.admission.capacity:
            self.admission.resize(info.streams)

    def measure(self) -> None:
        """Bring the gauges up to date."""
        self.metrics.active.set(self.admission.active)
        self.metrics.waiting.set(self.admission.waiting)
        self.metrics.capacity.set(self.admission.capacity)
        self.metrics.spectators.set(sum(len(session.audience) for session in self.sessions.values()))

    async def drain(self, seconds: float) -> None:
        """Take nothing new, and give live sessions this long to end."""
        self.draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while any(session.running for session in self.sessions.values()):
                    await asyncio.sleep(0.1)
