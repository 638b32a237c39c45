"""The command `sana-gateway`: vectors, refusals, and the whole thing started, used, killed and stopped."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import msgspec
import numpy as np
import psutil
import pytest
from gateways import REALTIME, Client, init, source
from typer.testing import CliRunner
from websockets.asyncio.client import connect

from sana_client.gateway.cli import app
from sana_client.gateway.encodings import make_encoder
from sana_client.gateway.serve import PREFIX, make_folder

MAIN = "from sana_client.gateway.cli import main; main()"


def vectors() -> dict:
    """A small file of vectors, made by hand where that is possible."""
    frames = np.arange(3 * 2 * 2 * 3, dtype=np.uint8).reshape(3, 2, 2, 3)
    delta = np.concatenate([frames[:1], frames[1:] ^ frames[:-1]]).tobytes().hex()
    return {
        "about": "made for this test",
        "event_sampling": [
            {
                "name": "tap",
                "model": "lingbot",
                "timeline": [
                    {"sample": 2, "slots": None},
                    {"event": {"mode": "state", "transitions": [{"actions": ["w"]}, {"actions": []}]}, "event_id": 1},
                    {"sample": 3, "slots": [["w"], [], []], "event_id": 1},
                    {"event": [["d"]], "event_id": 2},
                    {"sample": 2, "slots": [["d"], []], "event_id": 2},
                    {"sample": 1, "slots": [[]]},
                ],
            }
        ],
        "delta_gzip": [
            {
                "width": 2,
                "height": 2,
                "frames_hex": [frame.tobytes().hex() for frame in frames],
                "batches": [
                    {
                        "count": 3,
                        "delta_hex": delta,
                        "payload_hex": make_encoder("delta-gzip").encode(frames).payload.hex(),
                    }
                ],
            }
        ],
        "frame_framing": [
            {
                "framing": "documented",
                "format": "raw",
                "shape": [3, 2, 2, 3],
                "frames_hex": frames.tobytes().hex(),
                "headers": [{"type": "frame_batch", "raw_size": 36, "num_frames": 3, "encoding": "raw"}],
            }
        ],
        "rejected_inits": [{"message_hex": msgspec.msgpack.encode({"type": "init"}).hex()}],
    }


def check(path: Path, found: object) -> tuple[int, str]:
    path.write_text(json.dumps(found))
    outcome = CliRunner().invoke(app, ["check", "--vectors", str(path)])
    return outcome.exit_code, outcome.output


def test_vectors_that_agree_are_ok(tmp_path: Path) -> None:
    code, output = check(tmp_path / "vectors.json", vectors())
    assert code == 0
    assert [line.split(":")[0] for line in output.splitlines()] == [
        "ok   event_sampling",
        "ok   delta_gzip",
        "ok   frame_framing",
        "ok   rejected_inits",
    ]


@pytest.mark.parametrize("section", ["event_sampling", "delta_gzip", "frame_framing", "rejected_inits"])
def test_vectors_that_disagree_fail(tmp_path: Path, section: str) -> None:
    found = vectors()
    changed = {
        "event_sampling": lambda case: case["timeline"][2].update(slots=[["w"], ["w"], []]),
        "delta_gzip": lambda case: case["frames_hex"].reverse(),
        "frame_framing": lambda case: case["headers"][0].update(raw_size=35),
        "rejected_inits": lambda case: case.update(message_hex=msgspec.msgpack.encode(init()).hex()),
    }
    changed[section](found[section][0])
    code, output = check(tmp_path / "vectors.json", found)
    assert code == 1
    assert f"FAIL {section}" in output
    assert output.count("FAIL") == 1


def test_a_section_that_nobody_knows_fails(tmp_path: Path) -> None:
    code, output = check(tmp_path / "vectors.json", {"poses": [{}]})
    assert code == 1
    assert "unknown section 'poses'" in output


def test_the_folder_of_a_dead_gateway_is_removed() -> None:
    with subprocess.Popen(["true"]) as dead:
        dead.wait()
    mine = make_folder()
    stale = mine.with_name(f"{PREFIX}{dead.pid}-x")
    stale.mkdir()
    other = make_folder()
    try:
        assert not stale.exists()
        assert mine.exists()
    finally:
        mine.rmdir()
        other.rmdir()


def test_an_open_address_without_tokens_is_refused_in_one_sentence() -> None:
    command = [sys.executable, "-c", MAIN, "serve", "--triton", "127.0.0.1:1", "--host", "0.0.0.0"]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert outcome.returncode == 1
    assert outcome.stderr.startswith("sana-gateway: 0.0.0.0 can be reached from elsewhere")
    assert outcome.stderr.count("\n") == 1


@contextmanager
def started(repository: Path) -> Iterator[tuple[subprocess.Popen, str]]:
    """A gateway with its model server, and its address."""
    command = [sys.executable, "-c", MAIN, "up", str(repository), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout
            line = process.stdout.readline()
            assert line.startswith("open http://127.0.0.1:")
            yield process, line.split()[1]
        finally:
            process.terminate()


async def one_stream(address: str) -> np.ndarray:
    async with connect(address.replace("http", "ws").rstrip("/") + REALTIME, max_size=None) as socket:
        talker = Client(socket)
        await talker.send(init(max_chunks=1, lossless=True))
        await talker.frames(source(1))
        return (await talker.chunk())[0]


def until_health_is(address: str, status: int) -> None:
    deadline = time.monotonic() + 30
    while httpx.get(f"{address}health").status_code != status:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def gone(family: list[psutil.Process], seconds: float) -> bool:
    return not psutil.wait_procs(family, seconds)[1]


@pytest.mark.server
@pytest.mark.parametrize("way", [signal.SIGTERM, signal.SIGKILL])
def test_up_starts_everything_and_leaves_nothing(fake_repository: Path, way: signal.Signals) -> None:
    with started(fake_repository) as (process, address):
        np.testing.assert_array_equal(asyncio.run(one_stream(address)), 255 - source(1))
        family = psutil.Process(process.pid).children(recursive=True)
        assert any("tritonserver" in child.name() for child in family)
        process.send_signal(way)
        assert process.wait(30) == (0 if way is signal.SIGTERM else -signal.SIGKILL)
        assert gone(family, 30)
    if way is signal.SIGTERM:
        assert not list(Path("/tmp").glob(f"{PREFIX}{process.pid}-*"))


@pytest.mark.server
def test_a_killed_tritonserver_is_started_again(fake_repository: Path) -> None:
    with started(fake_repository) as (process, address):
        server = next(child for child in psutil.Process(process.pid).children(True) if "tritonserver" in child.name())
        os.kill(server.pid, signal.SIGKILL)
        until_health_is(address, 503)
        until_health_is(address, 200)
        found = asyncio.run(one_stream(address))
        np.testing.assert_array_equal(found, 255 - source(1))
