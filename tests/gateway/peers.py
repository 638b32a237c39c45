"""A WebRTC peer with a grey camera; `python peers.py ADDRESS` runs one until it is killed, and says when it works."""

import asyncio
import json
import sys
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import httpx
import numpy as np
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from av import VideoFrame

FPS = 30
SIDE = 64
GREY = 50


class GreyCamera(MediaStreamTrack):
    """The same picture, thirty times a second."""

    kind = "video"
    count = 0

    async def recv(self) -> VideoFrame:
        await asyncio.sleep(1 / FPS)
        frame = VideoFrame.from_ndarray(np.full((SIDE, SIDE, 3), GREY, np.uint8), format="rgb24")
        frame.pts, frame.time_base = self.count * 90000 // FPS, Fraction(1, 90000)
        self.count += 1
        return frame


@dataclass
class TestPeer:
    """One end of a connection to the gateway: messages and the edited track as they come."""

    __test__ = False

    connection: RTCPeerConnection = field(default_factory=lambda: RTCPeerConnection(RTCConfiguration(iceServers=[])))
    messages: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)
    edited: asyncio.Queue[MediaStreamTrack] = field(default_factory=asyncio.Queue)

    async def meet(self, address: str, **init: Any) -> str:
        """Connect, with a camera and a channel; the id of the session."""
        self.connection.on("track", self.edited.put_nowait)
        self.channel = self.connection.createDataChannel("commands")
        self.channel.on("message", lambda text: self.messages.put_nowait(json.loads(text)))
        self.connection.addTrack(GreyCamera())
        await self.connection.setLocalDescription(await self.connection.createOffer())
        offer = {"sdp": self.connection.localDescription.sdp, "init": {"fps": FPS, **init}}
        async with httpx.AsyncClient(base_url=address) as http:
            found = (await http.post("/v1/realtime_video/webrtc", json=offer)).json()
        await self.connection.setRemoteDescription(RTCSessionDescription(found["sdp"], found["type"]))
        return found["session_id"]

    def command(self, name: str, **data: Any) -> None:
        self.channel.send(json.dumps({"type": name, "data": data}))

    async def until(self, kind: str) -> dict[str, Any]:
        """The data of the next message of this type."""
        while (found := await self.messages.get())["type"] != kind:
            pass
        return found.get("data", found)


async def run(address: str) -> None:
    peer = TestPeer()
    await peer.meet(address)
    await peer.until("session")
    peer.command("set_prompt", prompt="invert")
    peer.command("start")
    await peer.until("chunk_complete")
    print("edited", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1]))
