"""The WebSocket protocol against the real model server, whose fake engines invert every pixel exactly."""

import asyncio
import time

import msgspec
import numpy as np
import pytest
from gateways import SIZE, Client, Gateway, client, closed, init, source

from sana_client import offload
from sana_client.gateway.live import LiveSession

pytestmark = pytest.mark.server


async def play(talker: Client, chunks: int) -> list[np.ndarray]:
    return [(await talker.chunk())[0] for _ in range(chunks)]


@pytest.mark.parametrize("form", [None, "raw"])
@pytest.mark.parametrize("framing", ["documented", "current"])
async def test_frames_come_back_edited_and_the_session_completes(gate: Gateway, form: str | None, framing: str) -> None:
    frames = source(3)
    async with client(gate) as talker:
        await talker.send(init(max_chunks=3, lossless=True, realtime_output_format=form, framing=framing))
        await talker.frames(frames)
        np.testing.assert_array_equal(np.concatenate(await play(talker, 3)), 255 - frames)
        assert await closed(talker) == (1000, "generation complete")


async def test_headers_number_the_frames_and_carry_capture_times_back(gate: Gateway) -> None:
    async with client(gate) as talker:
        await talker.send(init(max_chunks=2, lossless=True))
        await talker.frames(source(2), captured_ms=123.5)
        numbers, encodings = [], []
        for index in range(2):
            _, headers, stats = await talker.chunk()
            assert [header["frame_batch_index"] for header in headers] == list(range(len(headers)))
            assert [header["is_final_frame_batch"] for header in headers][-1] is True
            assert all(set(header["captured_ms"]) == {123.5} for header in headers)
            assert "event_id" not in headers[0]
            assert stats["chunk_index"] == index
            assert stats["event_id"] is None
            numbers += [header["frame_number"] for header in headers]
            encodings += [header.get("delta_reference") for header in headers]
    assert numbers == [0, 16, 32, 33, 49]
    assert encodings == [None, *["previous-frame"] * 4]


async def test_a_prompt_event_lands_at_a_chunk_boundary_and_is_echoed(gate: Gateway) -> None:
    frames = source(3)
    async with client(gate) as talker:
        await talker.send(init(max_chunks=3, lossless=True, realtime_output_format="raw"))
        await talker.frames(frames[:33])
        first, _, _ = await talker.chunk()
        await talker.event("prompt", "keep", event_id=7)
        await talker.frames(frames[33:])
        second, headers, stats = await talker.chunk()
    np.testing.assert_array_equal(first, 255 - frames[:33])
    np.testing.assert_array_equal(second, frames[33:57])
    assert headers[0]["event_id"] == stats["event_id"] == 7


async def test_the_pair_layout_shows_the_source_to_the_left(gate: Gateway) -> None:
    frames = source(1)
    async with client(gate) as talker:
        await talker.send(init(max_chunks=1, lossless=True, layout="pair", realtime_output_format="raw"))
        await talker.frames(frames)
        np.testing.assert_array_equal((await talker.chunk())[0], np.concatenate([frames, 255 - frames], axis=2))


@pytest.mark.parametrize("form", ["jpeg", "webp"])
async def test_images_come_close_to_the_exact_frames(gate: Gateway, form: str) -> None:
    frames = np.full((33, SIZE, SIZE, 3), 200, np.uint8)
    async with client(gate) as talker:
        await talker.send(init(max_chunks=1, lossless=True, realtime_output_format=form))
        await talker.frames(frames)
        found, headers, _ = await talker.chunk()
    assert [header["num_frames"] for header in headers] == [6, 6, 6, 6, 6, 3]
    assert np.abs(found.astype(int) - 55).max() <= 3


async def test_an_open_ended_stream_outlives_the_models_table(gate: Gateway) -> None:
    frames = source(11)
    async with client(gate) as talker:
        await talker.send(init(lossless=True, realtime_output_format="raw"))
        await talker.frames(frames)
        await talker.event("end")
        found = []
        async with asyncio.timeout(20):
            while sum(map(len, found)) < len(frames):
                found.append((await talker.chunk())[0])
    # The ninth chunk starts a new sequence, which takes 33 frames.
    assert [len(part) for part in found] == [33, *[24] * 7, 33, 24, 15]
    np.testing.assert_array_equal(np.concatenate(found), 255 - frames)


BAD_INITS = {
    "text": "hello",
    "no map": msgspec.msgpack.encode([1]),
    "no msgpack": b"\xc1\xff",
    "no prompt": msgspec.msgpack.encode({"type": "init"}),
    "empty prompt": msgspec.msgpack.encode(init("")),
    "other size": msgspec.msgpack.encode(init(size="832x480")),
    "fraction": msgspec.msgpack.encode(init(fps=24.5)),
    "no chunks": msgspec.msgpack.encode(init(max_chunks=0)),
    "unknown format": msgspec.msgpack.encode(init(realtime_output_format="avi")),
    "enhanced": msgspec.msgpack.encode(init(enhance_prompt=True)),
    "no such sample": msgspec.msgpack.encode(init(condition_inputs={"video": {"name": "../README.md"}})),
}


async def test_bad_inits_are_answered_and_the_socket_stays_open(gate: Gateway) -> None:
    async with client(gate) as talker:
        for bad in BAD_INITS.values():
            await talker.socket.send(bad)
            answer, _ = await talker.receive()
            assert (answer["type"], answer["content"]) == ("error", "invalid generate request")
            assert answer["detail"]
        await talker.send(init(max_chunks=1, lossless=True, num_inference_steps="4", unknown_key=[1]))
        await talker.frames(source(1))
        await talker.chunk()


async def test_bad_events_are_answered_and_change_nothing(gate: Gateway) -> None:
    frames = source(1)
    async with client(gate) as talker:
        await talker.send(init(max_chunks=1, lossless=True))
        await talker.socket.send("text")
        await talker.send(init())
        await talker.event("camera_actions", [["w"]])
        await talker.event("prompt", "")
        await talker.event("prompt", 5)
        await talker.event("frame", {"data": b"no picture"})
        for _ in range(6):
            answer, _ = await talker.receive()
            assert (answer["type"], answer["content"]) == ("error", "invalid event")
        await talker.frames(frames)
        np.testing.assert_array_equal((await talker.chunk())[0], 255 - frames)


async def test_a_full_server_says_how_many_are_ahead(gate: Gateway) -> None:
    async with client(gate) as one, client(gate) as two, client(gate) as three:
        for talker in (one, two):
            await talker.send(init(lossless=True))
            await talker.frames(source(1))
            await talker.chunk()
        began = time.monotonic()
        await three.send(init())
        refused, _ = await three.receive()
        assert refused["content"] == "another realtime session is already active"
        assert refused["ahead"] == 0
        assert 0.9 < time.monotonic() - began < 2
        assert (await closed(three))[0] == 1008


async def test_the_line_moves_up_when_a_client_leaves(gate: Gateway) -> None:
    async with client(gate) as one, client(gate) as two, client(gate) as three, client(gate) as four:
        for talker in (one, two):
            await talker.send(init(lossless=True))
            await talker.frames(source(1))
            await talker.chunk()
        for ahead, talker in enumerate((three, four)):
            await talker.send(init(commands=True, wait=True, lossless=True))
            await talker.command("start", wait=True)
            assert (await talker.until("waiting"))["ahead"] == ahead
        began = time.monotonic()
        await one.socket.close()
        await three.until("generation_started")
        assert time.monotonic() - began < 2
        assert (await four.until("waiting"))["ahead"] == 0


async def test_a_reset_leaves_the_line(gate: Gateway) -> None:
    async with client(gate) as one, client(gate) as two, client(gate) as three:
        for talker in (one, two):
            await talker.send(init(lossless=True))
            await talker.frames(source(1))
            await talker.chunk()
        await three.send(init(commands=True))
        await three.command("start", wait=True)
        await three.until("waiting")
        await three.command("start", wait=True)
        assert "stands in line" in (await three.until("command_error"))["reason"]
        await three.command("reset")
        await three.until("generation_reset")
        while gate.hub.admission.waiting:
            await asyncio.sleep(0.01)


async def test_a_killed_client_frees_its_slot_within_two_seconds(gate: Gateway) -> None:
    async with client(gate) as talker:
        await talker.send(init(lossless=True))
        await talker.frames(source(2))
        await talker.chunk()
        talker.socket.transport.abort()
        began = time.monotonic()
        while gate.hub.admission.active:
            await asyncio.sleep(0.02)
        assert time.monotonic() - began < 2


@pytest.mark.parametrize("inline_bytes", [offload.INLINE_BYTES, 0], ids=["small frames", "as if they were large"])
async def test_interleaved_sessions_do_not_mix(
    gate: Gateway, monkeypatch: pytest.MonkeyPatch, inline_bytes: int
) -> None:
    monkeypatch.setattr(offload, "INLINE_BYTES", inline_bytes)

    async def solo(seed: int) -> np.ndarray:
        async with client(gate) as talker:
            await talker.send(init(max_chunks=5, lossless=True, wait=True))
            await talker.frames(source(5, seed))
            return np.concatenate(await play(talker, 5))

    for seed, found in enumerate(await asyncio.gather(*(solo(seed) for seed in range(4)))):
        np.testing.assert_array_equal(found, 255 - source(5, seed))


async def test_the_oldest_frames_are_dropped_when_the_source_is_too_fast(gate: Gateway) -> None:
    frames = source(8)
    async with client(gate) as talker:
        await talker.send(init(realtime_output_format="raw"))
        await talker.frames(frames)
        await talker.event("end")
        stats = {}
        found = []
        while sum(map(len, found)) + stats.get("frames_dropped", 0) < len(frames):
            pixels, _, stats = await talker.chunk()
            found.append(pixels)
    assert stats["frames_in"] == len(frames)
    assert stats["frames_dropped"] == len(frames) - sum(map(len, found)) > 0
    np.testing.assert_array_equal(found[-1][-1], 255 - frames[-1])


async def test_a_defect_of_the_gateway_is_told_and_frees_the_slot(
    gate: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(LiveSession, "_deliver", broken)
    async with client(gate) as talker:
        await talker.send(init(lossless=True))
        await talker.frames(source(1))
        assert (await closed(talker))[0] == 1011
        assert "the gateway failed" in talker.got[-1]["content"]
