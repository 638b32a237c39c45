"""Session commands on the WebSocket against the real model server: states, files, pause and reset, spectators."""

import asyncio
import socket
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from gateways import SIZE, Client, Gateway, client, closed, gateway, init, source
from websockets.asyncio.client import connect

from fakes.tiny_engines import write_fake_repository
from sana_build.server import Ports, TritonServer

pytestmark = pytest.mark.server

CLIP = {"name": "big-buck-bunny.mp4"}
CLIP_FRAMES = 132


async def opened(talker: Client, **more: object) -> dict:
    """Open an idle session; its id and model."""
    await talker.send(init("", commands=True, lossless=True, realtime_output_format="raw", **more))
    return await talker.until("session")


async def started(talker: Client, prompt: str = "invert") -> None:
    """Open a session and start it."""
    await opened(talker)
    await talker.command("set_prompt", prompt=prompt)
    await talker.command("start")
    await talker.until("generation_started", prompt=prompt)


async def test_a_live_session_from_idle_to_idle(gate: Gateway) -> None:
    frames = source(2)
    async with client(gate) as talker:
        await opened(talker)
        assert (await talker.until("state"))["started"] is False
        await talker.command("start")
        assert "no prompt" in (await talker.until("command_error", command="start"))["reason"]
        await talker.command("set_prompt", prompt="invert")
        await talker.until("prompt_accepted", prompt="invert")
        await talker.until("conditions_ready")
        await talker.command("start")
        await talker.command("start")
        await talker.until("generation_started", prompt="invert")
        await talker.until("state", running=True)
        assert sum("has started" in str(told["data"].get("reason")) for told in talker.got if "data" in told) == 1
        await talker.frames(frames)
        await talker.command("finish")
        found = [(await talker.chunk())[0] for _ in range(2)]
        assert (await talker.until("chunk_complete", chunk_index=1))["frames_emitted"] == 24
        assert (await talker.until("generation_complete"))["total_chunks"] == 2
        assert (await talker.until("state"))["started"] is False
        np.testing.assert_array_equal(np.concatenate(found), 255 - frames)


async def test_the_active_prompt_is_the_one_a_chunk_was_computed_with(gate: Gateway) -> None:
    frames = source(2)
    async with client(gate) as talker:
        await started(talker)
        await talker.frames(frames[:33])
        first, _, _ = await talker.chunk()
        assert (await talker.until("chunk_complete"))["active_prompt"] == "invert"
        await talker.command("set_prompt", prompt="keep")
        await talker.frames(frames[33:])
        second, _, _ = await talker.chunk()
        assert (await talker.until("chunk_complete"))["active_prompt"] == "keep"
    np.testing.assert_array_equal(first, 255 - frames[:33])
    np.testing.assert_array_equal(second, frames[33:])


async def test_a_file_is_paced_and_completes_by_itself(gate: Gateway) -> None:
    async with client(gate) as talker:
        await opened(talker, fps=120)
        await talker.command("set_video", video=CLIP)
        assert "live mode" in (await talker.until("command_error"))["reason"]
        await talker.command("set_mode", mode="file")
        await talker.command("set_video", video=CLIP)
        accepted = await talker.until("video_accepted")
        assert accepted == {"width": 1280, "height": 720, "num_frames": CLIP_FRAMES, "num_latent_frames": 5 + 5 * 3}
        await talker.command("set_prompt", prompt="invert")
        loop = asyncio.get_running_loop()
        await talker.command("start")
        await talker.until("generation_started")
        began = loop.time()
        frames = [(await talker.chunk())[0] for _ in range(6)]
        assert [len(part) for part in frames] == [33, 24, 24, 24, 24, 3]
        # The last chunk goes out when the five before it have been shown.
        assert loop.time() - began > 129 / 120
        assert (await talker.until("generation_complete"))["total_chunks"] == 6


async def test_pause_resume_and_reset(gate: Gateway) -> None:
    frames = source(3)
    async with client(gate) as talker:
        await opened(talker)
        await talker.command("set_prompt", prompt="invert")
        await talker.command("pause")
        assert "works while it is running" in (await talker.until("command_error", command="pause"))["reason"]
        await talker.command("start")
        await talker.until("generation_started")
        await talker.frames(frames[:33])
        await talker.chunk()
        await talker.command("pause")
        await talker.until("generation_paused")
        await talker.frames(frames[33:57])
        await talker.command("resume")
        await talker.until("generation_resumed")
        await talker.frames(frames[57:])
        np.testing.assert_array_equal((await talker.chunk())[0], 255 - frames[57:])
        await talker.command("reset")
        await talker.until("generation_reset", reason="reset")
        state = await talker.until("state")
        assert (state["started"], state["has_prompt"], state["current_chunk"]) == (False, False, 0)
        await talker.command("set_prompt", prompt="keep")
        await talker.until("state", has_prompt=True)
        await talker.command("start")
        await talker.until("generation_started", prompt="keep")
        await talker.frames(frames[:33])
        np.testing.assert_array_equal((await talker.chunk())[0], frames[:33])


async def test_anchors_ground_the_model_on_the_source_again(gate: Gateway) -> None:
    async with client(gate) as talker:
        await opened(talker)
        await talker.command("set_anchor_interval", chunks=2)
        await talker.command("set_prompt", prompt="invert")
        await talker.command("start")
        await talker.until("generation_started")
        frames = source(5, seed=3)
        await talker.frames(frames)
        await talker.command("finish")
        found = [(await talker.chunk())[0] for _ in range(4)]
        assert [len(part) for part in found] == [33, 24, 33, 24]
        assert [data["data"]["chunk_index"] for data in talker.got if data["type"] == "anchored"] == [2, 4]
        np.testing.assert_array_equal(np.concatenate(found), 255 - frames[: 33 + 24 + 33 + 24])


async def test_a_stream_that_the_server_forgot_goes_on(tmp_path: Path) -> None:
    frames = np.full((33, SIZE, SIZE, 3), 100, np.uint8)
    write_fake_repository(tmp_path / "repository", idle_seconds=1)
    with TritonServer(tmp_path / "repository", Ports.free(), tmp_path / "server.log") as server:
        async with gateway(tmp_path, server.grpc_url) as gate, client(gate) as talker:
            await started(talker)
            await talker.frames(frames)
            await talker.chunk()
            await asyncio.sleep(2.5)
            # As many as three chunks: two may be on their way when the first of them is refused.
            await talker.frames(np.concatenate([frames[:24], frames[:24], frames]))
            found, _, stats = await talker.chunk()
            assert stats["chunk_index"] == next(
                told["data"]["chunk_index"] for told in talker.got if told["type"] == "anchored"
            )
            assert stats["frames_dropped"] in (24, 48)
            assert len(found) == 33
            assert (found == 155).all()


async def test_json_text_drives_a_session_as_well(gate: Gateway) -> None:
    async with connect(gate.socket(), max_size=None) as socket:
        talker = Client(socket)
        await socket.send('{"type": "set_prompt", "data": {"prompt": "invert"}}')
        await talker.until("prompt_accepted", prompt="invert")
        await socket.send('{"type": "set_seed", "data": {"seed": 3}}')
        assert (await talker.until("state", seed=3))["current_prompt"] == "invert"
        await socket.send('{"type": "set_seed", "data": {"seed": -1}}')
        assert (await talker.receive())[0]["content"] == "invalid event"


async def test_spectators_see_what_the_owner_sees_from_the_next_chunk_on(gate: Gateway) -> None:
    frames = source(3)
    async with client(gate) as talker:
        await talker.send(init(max_chunks=3, lossless=True))
        await talker.frames(frames[:33])
        _, _, stats = await talker.chunk()
        watching = f"/v1/realtime_video/watch/{stats['session_id']}"
        async with client(gate, watching) as one, client(gate, watching) as two:
            for viewer in (one, two):
                await viewer.until("state")
            await talker.frames(frames[33:])
            for viewer in (talker, one, two):
                found = np.concatenate([(await viewer.chunk())[0] for _ in range(2)])
                np.testing.assert_array_equal(found, 255 - frames[33:])
            assert await closed(one) == (1000, "")


async def test_an_unknown_session_cannot_be_watched(gate: Gateway) -> None:
    async with client(gate, "/v1/realtime_video/watch/nobody") as viewer:
        assert (await viewer.receive())[0]["content"] == "session not available"
        assert (await closed(viewer))[0] == 1008


async def test_a_client_that_does_not_read_is_cut_off_and_others_go_on(
    model_server: TritonServer, tmp_path: Path
) -> None:
    limited = gateway(tmp_path, model_server.grpc_url, stall_seconds=1.0)
    async with limited as gate, client(gate, max_queue=1) as stalled, client(gate) as talker:
        await stalled.send(init(lossless=True, realtime_output_format="raw", layout="pair"))
        stalled.socket.transport.pause_reading()
        await talker.send(init(max_chunks=3, lossless=True))
        pushing = asyncio.create_task(_push_for_ever(stalled))
        await talker.frames(source(3))
        for _ in range(3):
            await talker.chunk()
        async with asyncio.timeout(15):
            while gate.hub.admission.active:
                await asyncio.sleep(0.05)
        pushing.cancel()
        await asyncio.gather(pushing, return_exceptions=True)
        stalled.socket.transport.abort()


async def test_a_client_that_is_gone_without_a_word_frees_its_slot_within_two_seconds(gate: Gateway) -> None:
    async with client(gate, ping_interval=None) as silent:
        await silent.send(init(lossless=True))
        await silent.frames(source(1))
        await silent.chunk()
        # Neither answers pings nor closes, as a machine that lost its network.
        silent.socket.transport.pause_reading()
        began = time.monotonic()
        async with asyncio.timeout(5):
            while gate.hub.admission.active:
                await asyncio.sleep(0.05)
        assert time.monotonic() - began < 2
        assert 'sana_sessions_total{reason="client silent"} 1.0' in await metrics(gate)
        silent.socket.transport.abort()


async def test_a_silent_client_that_holds_no_slot_may_take_its_time(gate: Gateway) -> None:
    async with client(gate, ping_interval=None) as talker:
        await opened(talker)
        talker.socket.transport.pause_reading()
        await asyncio.sleep(2.5)
        talker.socket.transport.resume_reading()
        await talker.command("set_prompt", prompt="invert")
        await talker.until("prompt_accepted")


async def metrics(gate: Gateway) -> str:
    async with httpx.AsyncClient() as http:
        return (await http.get(f"{gate.http}/metrics")).text


async def test_a_client_that_reads_slowly_is_not_taken_for_dead(gate: Gateway) -> None:
    narrow = socket.socket()
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    narrow.connect(("127.0.0.1", gate.port))
    async with client(gate, sock=narrow, max_queue=1) as slow:
        video = {"condition_inputs": {"video": CLIP}}
        await slow.send(init(realtime_output_format="raw", layout="pair", max_chunks=4, **video))
        await slow.receive()
        # More than a chunk is on its way for longer than a silent peer may live.
        slow.socket.transport.pause_reading()
        await asyncio.sleep(3)
        slow.socket.transport.resume_reading()
        assert await closed(slow) == (1000, "generation complete")


async def _push_for_ever(talker: Client) -> None:
    while True:
        await talker.frames(source(3))


async def test_a_lost_model_server_is_told_and_the_session_can_start_again(
    fake_repository: Path, tmp_path: Path
) -> None:
    ports = Ports.free()
    server = TritonServer(fake_repository, ports, tmp_path / "server.log")
    with server:
        async with gateway(tmp_path, server.grpc_url) as gate, client(gate) as talker, client(gate) as plain:
            await started(talker)
            await plain.send(init(lossless=True))
            for each in (talker, plain):
                await each.frames(source(1))
                await each.chunk()
            server.kill()
            assert "went away" in (await talker.until("generation_reset"))["reason"]
            assert (await closed(plain))[0] == 1011
            assert plain.got[-1]["content"].startswith("error during generate loop: ")
            await talker.command("start")
            assert await talker.until("command_error", command="start")
            server.start()
            while gate.hub.info is None:
                await asyncio.sleep(0.1)
            await talker.command("start")
            await talker.until("generation_started", prompt="invert")
            await talker.frames(source(1))
            await talker.chunk()
