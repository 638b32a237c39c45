"""WebRTC against the real model server: camera in, edit out, commands beside them."""

import asyncio
import json
from fractions import Fraction

import httpx
import numpy as np
import pytest
from av import VideoFrame
from gateways import Gateway

aiortc = pytest.importorskip("aiortc", reason="aiortc is not installed")

pytestmark = pytest.mark.server

FPS = 30
SIDE = 64


class Camera(aiortc.MediaStreamTrack):
    """A grey picture, thirty times a second."""

    kind = "video"
    count = 0

    async def recv(self) -> VideoFrame:
        await asyncio.sleep(1 / FPS)
        frame = VideoFrame.from_ndarray(np.full((SIDE, SIDE, 3), 50, np.uint8), format="rgb24")
        frame.pts, frame.time_base = self.count * 90000 // FPS, Fraction(1, 90000)
        self.count += 1
        return frame


async def negotiate(gate: Gateway, connection: "aiortc.RTCPeerConnection") -> dict:
    await connection.setLocalDescription(await connection.createOffer())
    async with httpx.AsyncClient() as http:
        offer = {"sdp": connection.localDescription.sdp, "init": {"fps": FPS}}
        found = (await http.post(f"{gate.http}/v1/realtime_video/webrtc", json=offer)).json()
    await connection.setRemoteDescription(aiortc.RTCSessionDescription(found["sdp"], found["type"]))
    return found


async def test_the_camera_comes_back_edited(gate: Gateway) -> None:
    connection = aiortc.RTCPeerConnection()
    edited: asyncio.Queue = asyncio.Queue()
    messages: asyncio.Queue = asyncio.Queue()
    connection.on("track", edited.put_nowait)
    channel = connection.createDataChannel("commands")
    channel.on("message", lambda text: messages.put_nowait(json.loads(text)))
    connection.addTrack(Camera())
    found = await negotiate(gate, connection)
    async with asyncio.timeout(30):
        opened = await messages.get()
        assert (opened["type"], opened["data"]["session_id"]) == ("session", found["session_id"])
        channel.send('{"type": "set_prompt", "data": {"prompt": "invert"}}')
        channel.send('{"type": "start"}')
        while (await messages.get())["type"] != "chunk_complete":
            pass
        track = await edited.get()
        frames = [await track.recv() for _ in range(10)]
    # Video compression costs a little; 255 - 50 is far from everything else.
    assert abs(frames[-1].to_ndarray(format="rgb24").mean() - 205) < 6
    assert frames[-1].pts > frames[0].pts
    await connection.close()
    async with asyncio.timeout(10):
        while gate.hub.sessions or gate.hub.admission.active:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    "offer", [{}, {"sdp": 1}, {"sdp": "x"}, {"sdp": "v=0", "init": []}, {"sdp": "", "init": {"fps": 0}}]
)
async def test_offers_that_cannot_be_used_leave_no_session(gate: Gateway, offer: dict) -> None:
    async with httpx.AsyncClient() as http:
        answer = await http.post(f"{gate.http}/v1/realtime_video/webrtc", json=offer)
    assert answer.status_code == 400
    assert not gate.hub.sessions
