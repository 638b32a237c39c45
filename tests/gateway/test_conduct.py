"""How a gateway treats its sessions: pacing, fairness, what it writes down, and how it stops."""

import asyncio
import json
import logging
import time

import httpx
import pytest
from gateways import Client, Gateway, client, closed, init, source

from sana_client.gateway.hub import log

pytestmark = pytest.mark.server

VIDEO = {"condition_inputs": {"video": {"name": "big-buck-bunny.mp4"}}}
SECRET = "keep you video"


async def test_a_paced_file_is_never_more_than_one_chunk_ahead(gate: Gateway) -> None:
    fps = 60
    async with client(gate) as talker:
        await talker.send(init(max_chunks=4, fps=fps, **VIDEO))
        arrivals = []
        for _ in range(4):
            await talker.chunk()
            arrivals.append(time.monotonic())
    # Each one comes when the ones before it have been shown: what a viewer has ahead is the chunk that just came.
    shown = [33 / fps, (33 + 24) / fps, (33 + 24 + 24) / fps]
    for arrived, earliest in zip(arrivals[1:], shown, strict=True):
        assert arrived - arrivals[0] > earliest - 0.05


async def test_sessions_share_the_model_evenly(gate: Gateway) -> None:
    async def greedy(until: float) -> int:
        async with client(gate) as talker:
            await talker.send(init(lossless=True, realtime_output_format="raw"))
            pushing = asyncio.create_task(push_for_ever(talker))
            chunks = 0
            while time.monotonic() < until:
                await talker.chunk()
                chunks += 1
            pushing.cancel()
            await asyncio.gather(pushing, return_exceptions=True)
            return chunks

    # Both want all that there is.
    until = time.monotonic() + 4
    one, other = await asyncio.gather(greedy(until), greedy(until))
    assert min(one, other) > 10
    assert abs(one - other) / max(one, other) < 0.2


async def push_for_ever(talker: Client) -> None:
    while True:
        await talker.frames(source(2))


async def test_a_session_leaves_an_audit_line_without_what_it_was_about(
    gate: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger=log.name):
        async with client(gate) as talker:
            await talker.send(init(SECRET, max_chunks=2, lossless=True))
            await talker.frames(source(2))
            assert (await closed(talker))[0] == 1000
        async with asyncio.timeout(5):
            while gate.hub.sessions:
                await asyncio.sleep(0.01)
    lines = [json.loads(record.message) for record in caplog.records if record.name == log.name]
    opened, ended = (
        next(line for line in lines if line["event"] == f"session {what}") for what in ("opened", "closed")
    )
    assert opened["session"] == ended["session"]
    assert (ended["caller"], ended["ended"], ended["chunks"]) == ("local", "complete", 2)
    assert (ended["frames_in"], ended["frames_out"], ended["frames_dropped"]) == (57, 57, 0)
    assert SECRET not in caplog.text


async def test_a_stopping_gateway_lets_sessions_finish_and_takes_no_new_ones(gate: Gateway) -> None:
    async with client(gate) as talker, client(gate) as late:
        await talker.send(init(max_chunks=3, lossless=True))
        await talker.frames(source(1))
        await talker.chunk()
        stopping = asyncio.create_task(gate.hub.drain(20))
        await asyncio.sleep(0)
        await late.send(init())
        assert "stopping" in (await late.receive())[0]["detail"]
        await talker.frames(source(3)[33:])
        assert await closed(talker) == (1000, "generation complete")
        async with asyncio.timeout(5):
            await stopping


async def test_the_time_of_each_stage_is_a_metric(gate: Gateway) -> None:
    async with client(gate) as talker:
        await talker.send(init(max_chunks=2, lossless=True))
        await talker.frames(source(2))
        assert (await closed(talker))[0] == 1000
    await gate.hub.refresh()
    async with httpx.AsyncClient(base_url=gate.http) as http:
        lines = dict(line.rsplit(" ", 1) for line in (await http.get("/metrics")).text.splitlines() if line[0] != "#")
    for stage in ("vae_encoder", "denoiser", "vae_decoder"):
        assert float(lines[f'sana_stage_chunks_total{{stage="{stage}"}}']) >= 2
        assert float(lines[f'sana_stage_seconds_total{{part="compute_infer",stage="{stage}"}}']) > 0
