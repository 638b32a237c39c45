"""The command `sana-gateway`: vectors, refusals, and the whole thing started, used, killed and stopped."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
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
from sana_client.gateway.folder import PREFIX, own_folder

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


def golden() -> Path:
    found = Path(__file__).parents[3] / "shared" / "golden" / "camera_actions.json"
    if not found.exists():
        pytest.skip("the recorded vectors are not beside this project")
    return found


@pytest.mark.parametrize(
    "path", [lambda: Path(__file__).parent / "data" / "vectors_from_the_protocol_text.json", golden]
)
def test_the_vectors_that_there_are_agree(path: Callable[[], Path]) -> None:
    outcome = CliRunner().invoke(app, ["check", "--vectors", str(path())])
    assert outcome.exit_code == 0, outcome.output
    assert "ok   event_sampling: " in outcome.output


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
    with own_folder() as mine:
        stale = mine.path.with_name(f"{PREFIX}{dead.pid}-x")
        stale.mkdir()
        with own_folder() as other:
            assert not stale.exists()
            assert mine.path.exists()
        assert not other.path.exists()


KEEPER = """
import subprocess, time
from sana_client.gateway.folder import own_folder
with own_folder() as folder:
    heir = subprocess.Popen(["sleep", "60"], pass_fds=[folder.keeper], stdout=subprocess.DEVNULL)
    print(heir.pid, folder.path, flush=True)
    time.sleep(60)
"""


def test_a_folder_goes_with_the_last_process_that_keeps_it() -> None:
    with subprocess.Popen([sys.executable, "-c", KEEPER], stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout
        heir, path = killed.stdout.readline().split()
        killed.kill()
    assert not folder_gone(Path(path), 0.3)
    os.kill(int(heir), signal.SIGKILL)
    assert folder_gone(Path(path), 5)


def folder_gone(path: Path, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while path.exists() and time.monotonic() < until:
        time.sleep(0.05)
    return not path.exists()


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
    before = set(Path(tempfile.gettempdir()).glob("sana-triton-*"))
    with started(fake_repository) as (process, address):
        np.testing.assert_array_equal(asyncio.run(one_stream(address)), 255 - source(1))
        family = psutil.Process(process.pid).children(recursive=True)
        assert any("tritonserver" in child.name() for child in family)
        process.send_signal(way)
        assert process.wait(30) == (0 if way is signal.SIGTERM else -signal.SIGKILL)
        assert gone(family, 30)
    root = Path(tempfile.gettempdir())
    assert not list(root.glob(f"{PREFIX}{process.pid}-*"))
    assert not [path for path in root.glob("sana-triton-*") if path not in before]


@pytest.mark.server
def test_a_killed_tritonserver_is_started_again(fake_repository: Path) -> None:
    with started(fake_repository) as (process, address):
        server = next(child for child in psutil.Process(process.pid).children(True) if "tritonserver" in child.name())
        os.kill(server.pid, signal.SIGKILL)
        until_health_is(address, 503)
        until_health_is(address, 200)
        found = asyncio.run(one_stream(address))
        np.testing.assert_array_equal(found, 255 - source(1))


def test_the_gateway_stops_when_its_model_server_gives_up(fake_repository: Path, tmp_path: Path) -> None:
    command = tmp_path / "sana-build"
    command.write_text("#!/bin/sh\necho ready: nothing\nsleep 3\necho too many restarts\nexit 1\n")
    command.chmod(0o755)
    program = f"import sana_client.gateway.model_server as m; m._command = lambda: {str(command)!r}; {MAIN}"
    started = subprocess.run(
        [sys.executable, "-c", program, "up", str(fake_repository), "--port", "0"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert started.returncode == 1
    assert "too many restarts" in started.stderr
    assert "sana-gateway: the model server gave up" in started.stderr
