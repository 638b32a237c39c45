"""How the bundled server starts, fails, is watched over and stops."""

import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tritonclient.grpc import InferenceServerClient

from fakes.streams import assert_stream_works, infer
from fakes.tiny_engines import write_fake_repository
from sana_build.server import HOST, SHARED_MEMORY, Ports, TritonServer
from sana_build.supervisor import RESTARTS, _allow_restart
from sana_runtime.errors import ConfigError, ServerError

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("supervised") / "repository"
    write_fake_repository(path)
    return path


@pytest.fixture
def copy(repository: Path, tmp_path: Path) -> Path:
    return shutil.copytree(repository, tmp_path / "repository")


@pytest.mark.parametrize("way", ["stop", "kill"])
def test_stopped_server_leaves_no_process_and_no_memory(repository: Path, tmp_path: Path, way: str) -> None:
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    server = TritonServer(repository, Ports.free(), tmp_path / "log")
    server.start()
    region = server.region
    assert len(server.stubs()) == 4
    assert list(SHARED_MEMORY.glob(f"{region}*"))
    getattr(server, way)()
    assert not {process.pid for process in psutil.Process().children(recursive=True)} - before
    assert not list(SHARED_MEMORY.glob(f"{region}*"))
    assert not server.stubs()


def test_live_stream_does_not_hold_the_stop_up_for_ever(repository: Path, tmp_path: Path) -> None:
    with (
        TritonServer(repository, Ports.free(), tmp_path / "log", drain=1) as server,
        InferenceServerClient(server.grpc_url) as client,
    ):
        infer(client, 61, 0)
        process = psutil.Process(server.process.pid)
        server.stop()
        assert not process.is_running()


def test_taken_port_is_named(repository: Path, tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as taken:
        ports = Ports.free()
        busy = Ports(ports.http, taken.getsockname()[1], ports.metrics)
        with pytest.raises(ConfigError, match=f"grpc port {busy.grpc} cannot be opened"):
            TritonServer(repository, busy, tmp_path / "log").start()


def test_edited_engine_is_refused_at_load_with_the_reason(copy: Path, tmp_path: Path) -> None:
    with (copy / "denoiser" / "1" / "first.onnx").open("ab") as stream:
        stream.write(b"\n")
    server = TritonServer(copy, Ports.free(), tmp_path / "log")
    with pytest.raises(ServerError, match=r"first\.onnx was changed after the build"):
        server.start()
    assert server.process is None


def test_model_without_code_fails_instead_of_hanging(copy: Path, tmp_path: Path) -> None:
    (copy / "vae_decoder" / "1" / "model.py").unlink()
    with pytest.raises(ServerError, match=r"without 1/model\.py"):
        TritonServer(copy, Ports.free(), tmp_path / "log", deadline=30).start()


SERVE = """
import sys
from pathlib import Path
from sana_build.server import Ports
from sana_build.supervisor import serve
serve(Path(sys.argv[1]), Ports(*map(int, sys.argv[2:5])), lambda event: print(event, flush=True), Path(sys.argv[5]))
"""


def wait_for(output: Iterator[str], words: str) -> str:
    for line in output:
        if words in line:
            return line
    raise AssertionError(f"the supervisor ended without saying {words!r}")


def test_supervisor_restarts_a_server_with_a_dead_model_and_stops_on_sigterm(repository: Path, tmp_path: Path) -> None:
    ports = Ports.free()
    arguments = [str(repository), *map(str, vars(ports).values()), str(tmp_path / "log")]
    command = [sys.executable, "-c", SERVE, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as supervisor:
        try:
            wait_for(supervisor.stdout, "ready: fake")
            stubs = [child for child in psutil.Process(supervisor.pid).children(True) if "stub" in child.name()]
            stubs[0].kill()
            wait_for(supervisor.stdout, "1 of 4 model processes died")
            wait_for(supervisor.stdout, "ready: fake")
            with InferenceServerClient(f"{HOST}:{ports.grpc}") as client:
                assert_stream_works(client, 71)
            family = psutil.Process(supervisor.pid).children(recursive=True)
            supervisor.send_signal(signal.SIGTERM)
            wait_for(supervisor.stdout, "stopped")
            assert supervisor.wait(20) == 0
            assert not [process for process in family if process.is_running()]
        finally:
            supervisor.terminate()


def test_edited_repository_is_not_served(copy: Path, tmp_path: Path) -> None:
    (copy / "denoiser" / "config.pbtxt").write_text("")
    command = [sys.executable, "-c", SERVE, str(copy), *map(str, vars(Ports.free()).values()), str(tmp_path / "log")]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert outcome.returncode == 1
    assert "config.pbtxt was changed after the build" in outcome.stderr


def test_stop_while_loading_leaves_nothing(repository: Path, tmp_path: Path) -> None:
    cancel = threading.Event()
    cancel.set()
    server = TritonServer(repository, Ports.free(), tmp_path / "log", cancel=cancel)
    with pytest.raises(ServerError, match="stopped while it was loading"):
        server.start()
    assert not server.stubs()
    assert not list(SHARED_MEMORY.glob(f"{server.region}*"))


def test_server_that_keeps_dying_is_given_up() -> None:
    restarts: deque[float] = deque(maxlen=RESTARTS)
    for _ in range(RESTARTS):
        _allow_restart(restarts, "the server process died")
    with pytest.raises(ServerError, match="the server process died for the 4th time"):
        _allow_restart(restarts, "the server process died")
