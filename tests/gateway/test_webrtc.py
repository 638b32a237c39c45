"""WebRTC against the real model server: camera in, edit out, commands beside them, and peers that vanish."""

import asyncio
import sys
import time
from pathlib import Path

import httpx
import pytest
from gateways import Gateway, client

aiortc = pytest.importorskip("aiortc", reason="aiortc is not installed")

from peers import GREY, TestPeer  # noqa: E402

from sana_client.gateway.alive import LifeSigns  # noqa: E402


@pytest.mark.server
async def test_the_camera_comes_back_edited(gate: Gateway) -> None:
    peer = TestPeer()
    async with asyncio.timeout(30):
        session_id = await peer.meet(gate.http)
        assert (await peer.until("session"))["session_id"] == session_id
        peer.command("set_prompt", prompt="invert")
        peer.command("start")
        await peer.until("chunk_complete")
        track = await peer.edited.get()
        frames = [await track.recv() for _ in range(10)]
        # Half a chunk or more is gathered before the model sees a frame, so the gateway has held it for some time.
        assert (await peer.until("ping"))["held_ms"] > 100
    # Video compression costs a little; 255 - 50 is far from everything else.
    assert abs(frames[-1].to_ndarray(format="rgb24").mean() - (255 - GREY)) < 6
    assert frames[-1].pts > frames[0].pts
    await peer.connection.close()


@pytest.mark.server
async def test_spectators_see_the_session_of_a_peer(gate: Gateway) -> None:
    peer = TestPeer()
    async with asyncio.timeout(30):
        session_id = await peer.meet(gate.http, realtime_output_format="raw")
        await peer.until("session")
        peer.command("set_prompt", prompt="invert")
        peer.command("start")
        await peer.until("chunk_complete")
        async with client(gate, f"/v1/realtime_video/watch/{session_id}") as viewer:
            frames, _, stats = await viewer.chunk()
    assert stats["num_frames"] == len(frames) == 24
    assert abs(frames.mean() - (255 - GREY)) < 6
    await peer.connection.close()


@pytest.mark.server
async def test_the_slot_of_a_killed_peer_is_free_within_two_seconds(gate: Gateway) -> None:
    script = Path(__file__).with_name("peers.py")
    peer = await asyncio.create_subprocess_exec(sys.executable, script, gate.http, stdout=asyncio.subprocess.PIPE)
    assert peer.stdout
    async with asyncio.timeout(30):
        assert await peer.stdout.readline() == b"edited\n"
    assert gate.hub.admission.active == 1
    peer.kill()
    killed = time.monotonic()
    async with asyncio.timeout(10):
        while gate.hub.admission.active:
            await asyncio.sleep(0.02)
    assert time.monotonic() - killed < 2
    await peer.wait()


@pytest.mark.server
async def test_a_peer_whose_only_fault_is_to_have_no_camera_stays(gate: Gateway) -> None:
    peer = TestPeer()
    async with asyncio.timeout(30):
        await peer.meet(gate.http)
        await peer.until("session")
        peer.connection.getSenders()[0].replaceTrack(None)
        for _ in range(16):
            await peer.until("ping")
    assert gate.hub.sessions
    await peer.connection.close()


@pytest.mark.server
@pytest.mark.parametrize(
    "offer", [{}, {"sdp": 1}, {"sdp": "x"}, {"sdp": "v=0", "init": []}, {"sdp": "", "init": {"fps": 0}}]
)
async def test_offers_that_cannot_be_used_leave_no_session(gate: Gateway, offer: dict) -> None:
    async with httpx.AsyncClient() as http:
        answer = await http.post(f"{gate.http}/v1/realtime_video/webrtc", json=offer)
    assert answer.status_code == 400
    assert not gate.hub.sessions


def test_silence_counts_from_the_last_change() -> None:
    now = [0.0]
    signs = LifeSigns(lambda: now[0])
    for seconds, counted in enumerate((3, 4, 9, 9)):
        now[0] = seconds
        signs.seen(counted)
        assert not signs.dead(holds_slot=True)
    now[0] = 3.6
    assert signs.dead(holds_slot=True)
    assert not signs.dead(holds_slot=False)
    signs.seen(10)
    assert not signs.dead(holds_slot=True)
    now[0] = 24
    assert signs.dead(holds_slot=False)
