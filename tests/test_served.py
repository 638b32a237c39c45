"""The whole product on the smallest model: built, served by the real Triton server, streamed through the client."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from micro import MICRO
from sana_build.server import Ports, TritonServer
from sana_export.checkpoint import resolve
from sana_export.pipeline import OfflinePipeline
from streams import moving_bars, offline, pieces, served, served_together, share_within_one

pytestmark = pytest.mark.server

RED, BLUE = "make everything red", "paint the sky blue"


@pytest.fixture(scope="module")
def server(micro_repository: Path) -> Iterator[TritonServer]:
    with TritonServer(micro_repository, Ports.free(), micro_repository.parent / "server.log") as running:
        yield running


def bars(seed: int, chunks: int = 5) -> list[np.ndarray]:
    return moving_bars(MICRO.geometry, chunks, seed)


def test_served_frames_equal_the_same_pipeline_in_pytorch(server: TritonServer) -> None:
    work = pieces(bars(1), [RED, RED, BLUE, BLUE, RED])
    found = asyncio.run(served(server.grpc_url, work, seed=7))
    wanted = offline(OfflinePipeline.load(MICRO, resolve("random:0", MICRO)), work, seed=7)
    assert [len(frames) for frames in found] == [33, 24, 24, 24, 24]
    assert share_within_one(found, wanted) >= 0.999
    assert np.concatenate(found).std() > 1


def test_three_interleaved_streams_equal_three_solo_runs(server: TritonServer) -> None:
    works = [pieces(bars(seed), [prompt] * 5) for seed, prompt in ((1, RED), (2, BLUE), (3, RED))]
    solo = [asyncio.run(served(server.grpc_url, work)) for work in works]
    together = served_together(server.grpc_url, works)
    for alone, mixed in zip(solo, together, strict=True):
        np.testing.assert_array_equal(np.concatenate(alone), np.concatenate(mixed))


def test_a_prompt_change_leaves_earlier_chunks_identical(server: TritonServer) -> None:
    plain = asyncio.run(served(server.grpc_url, pieces(bars(4), [RED] * 5)))
    changed = asyncio.run(served(server.grpc_url, pieces(bars(4), [RED, RED, RED, BLUE, BLUE])))
    for index in range(3):
        np.testing.assert_array_equal(plain[index], changed[index])
    assert not np.array_equal(plain[3], changed[3])


def test_chunks_carry_state(server: TritonServer) -> None:
    chunks = bars(5, chunks=3)
    straight = asyncio.run(served(server.grpc_url, pieces(chunks, [RED] * 3)))
    other_past = [bars(6, chunks=3)[0], *chunks[1:]]
    moved = asyncio.run(served(server.grpc_url, pieces(other_past, [RED] * 3)))
    assert not np.array_equal(straight[2], moved[2])


def memory(server: TritonServer) -> float:
    """Resident megabytes of the server and its python processes."""
    assert server.process
    processes = [psutil.Process(server.process.pid), *server.stubs()]
    return sum(process.memory_info().rss for process in processes) / 1e6


def test_memory_is_flat_over_a_long_stream(server: TritonServer) -> None:
    chunks, count = bars(7, chunks=2), 200
    work = pieces([chunks[0], *[chunks[1]] * (count - 1)], [RED] * count)
    asyncio.run(served(server.grpc_url, work[:40]))
    before = memory(server)
    found = asyncio.run(served(server.grpc_url, work))
    assert len(found) == count
    assert memory(server) - before < 10


def test_memory_is_flat_over_many_streams(server: TritonServer) -> None:
    work = pieces(bars(8, chunks=2), [RED] * 2)
    for _ in range(10):
        asyncio.run(served(server.grpc_url, work))
    before = memory(server)
    for _ in range(50):
        asyncio.run(served(server.grpc_url, work))
    assert memory(server) - before < 10


def test_a_client_killed_in_mid_stream_leaves_the_server_usable(
    server: TritonServer, clip: Path, tmp_path: Path
) -> None:
    command = [str(Path(sys.executable).with_name("sana-stream")), str(clip), "--prompt", RED]
    output = tmp_path / "killed.mp4"
    with subprocess.Popen([*command, "--output", str(output), "--url", server.grpc_url]) as client:
        while not output.exists() or not output.stat().st_size:
            assert client.poll() is None, "the client ended before it could be killed"
            time.sleep(0.01)
        client.kill()
    works = [pieces(bars(seed), [RED] * 5) for seed in (1, 2)]
    solo = [asyncio.run(served(server.grpc_url, work)) for work in works]
    together = served_together(server.grpc_url, works)
    np.testing.assert_array_equal(np.concatenate(solo[1]), np.concatenate(together[1]))
