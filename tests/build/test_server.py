"""The real Triton server over the fake pipeline: order, isolation, refusals, slots, and how it starts and stops."""

import queue
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from fakes.tiny_engines import SIZE, write_fake_repository
from sana_build.server import HOST, SHARED_MEMORY, Ports, TritonServer
from sana_build.supervisor import canary
from sana_runtime.errors import ConfigError, ServerError
from sana_runtime.manifest import Manifest

pytestmark = pytest.mark.server

ENSEMBLE = "sana_streaming"
CHUNKS = 5
INVERT = b"invert"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "repository"
    write_fake_repository(path, streams=2, chunks=CHUNKS)
    return path


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    with TritonServer(repository, Ports.free(), tmp_path_factory.mktemp("log") / "triton.log") as running:
        yield running


@pytest.fixture
def client(server: TritonServer) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(server.grpc_url) as connection:
        yield connection


@pytest.fixture
def copy(repository: Path, tmp_path: Path) -> Path:
    return shutil.copytree(repository, tmp_path / "repository")


def frames(index: int, seed: int = 0) -> np.ndarray:
    shape = (1, 33 if index == 0 else 24, SIZE, SIZE, 3)
    return np.random.default_rng([seed, index]).integers(0, 256, shape, np.uint8)


def tensors(pixels: np.ndarray, prompt: bytes) -> list[InferInput]:
    arrays = {"frames": pixels, "prompt": np.frombuffer(prompt, np.uint8)[None]}
    inputs = [InferInput(name, array.shape, np_to_triton_dtype(array.dtype)) for name, array in arrays.items()]
    for item, array in zip(inputs, arrays.values(), strict=True):
        item.set_data_from_numpy(array)
    return inputs


def infer(
    client: InferenceServerClient,
    stream: int | str,
    index: int,
    pixels: np.ndarray | None = None,
    prompt: bytes = INVERT,
    *,
    start: bool | None = None,
    end: bool = False,
    **parameters: Any,
) -> np.ndarray:
    """One chunk, waiting for its answer; the parameter `chunk` is the index unless given."""
    answer = client.infer(
        ENSEMBLE,
        tensors(frames(index) if pixels is None else pixels, prompt),
        sequence_id=stream,
        sequence_start=index == 0 if start is None else start,
        sequence_end=end,
        timeout=parameters.pop("timeout", None),
        parameters={"chunk": index} | parameters,
        client_timeout=30,
    )
    return answer.as_numpy("edited")


def close(client: InferenceServerClient, stream: int | str) -> np.ndarray:
    black = np.zeros((1, 1, SIZE, SIZE, 3), np.uint8)
    return infer(client, stream, 0, black, b" ", start=True, end=True, close=True)


def assert_stream_works(client: InferenceServerClient, stream: int | str) -> None:
    """Two chunks of a stream that begins now; the last one ends it."""
    for index in range(2):
        np.testing.assert_array_equal(infer(client, stream, index, end=index == 1), 255 - frames(index))


class Pipeline:
    """Chunks of any streams sent without waiting, over one gRPC stream; answers come back by request id."""

    def __init__(self, client: InferenceServerClient) -> None:
        self.client, self.sent = client, 0
        self.answers: queue.Queue = queue.Queue()
        client.start_stream(lambda result, error: self.answers.put((result, error)))

    def send(self, stream: int | str, index: int, pixels: np.ndarray, prompt: bytes, end: bool) -> None:
        flags = {"sequence_id": stream, "sequence_start": index == 0, "sequence_end": end}
        name = f"{stream}/{index}"
        parameters = {"chunk": index}
        inputs = tensors(pixels, prompt)
        self.client.async_stream_infer(ENSEMBLE, inputs, request_id=name, parameters=parameters, **flags)
        self.sent += 1

    def collect(self) -> dict[str, np.ndarray]:
        edited = {}
        for _ in range(self.sent):
            result, error = self.answers.get(timeout=60)
            assert error is None, error
            edited[result.get_response().id] = result.as_numpy("edited")
        self.client.stop_stream()
        return edited


def test_stream_comes_back_inverted(client: InferenceServerClient) -> None:
    for index in range(CHUNKS):
        edited = (
            infer(client, 11, index, end=index == CHUNKS - 1, seed=3)
            if index == 0
            else infer(client, 11, index, end=index == CHUNKS - 1)
        )
        np.testing.assert_array_equal(edited, 255 - frames(index))


def test_string_ids_work(client: InferenceServerClient) -> None:
    assert_stream_works(client, "camera/1")


def test_answer_is_in_place_for_the_next_prompt(client: InferenceServerClient) -> None:
    np.testing.assert_array_equal(infer(client, 12, 0), 255 - frames(0))
    np.testing.assert_array_equal(infer(client, 12, 1, prompt=b"keep"), frames(1))
    np.testing.assert_array_equal(infer(client, 12, 2, end=True), 255 - frames(2))


def test_slow_new_prompt_is_not_overtaken_by_a_known_one(client: InferenceServerClient) -> None:
    pipeline = Pipeline(client)
    prompts = [b"keep", b"slow", b"keep", b"slow invert", b"keep"]
    for index, prompt in enumerate(prompts):
        pipeline.send(13, index, frames(index), prompt, index == CHUNKS - 1)
    edited = pipeline.collect()
    for index, prompt in enumerate(prompts):
        expected = frames(index) if prompt == b"keep" else 255 - frames(index)
        np.testing.assert_array_equal(edited[f"13/{index}"], expected)


def test_interleaved_streams_are_isolated(client: InferenceServerClient) -> None:
    pipeline = Pipeline(client)
    prompts = {21: b"invert", 22: b"keep"}
    for index in range(CHUNKS):
        for stream, prompt in prompts.items():
            pipeline.send(stream, index, frames(index, stream), prompt, index == CHUNKS - 1)
    edited = pipeline.collect()
    for index in range(CHUNKS):
        np.testing.assert_array_equal(edited[f"21/{index}"], 255 - frames(index, 21))
        np.testing.assert_array_equal(edited[f"22/{index}"], frames(index, 22))


def test_gap_is_refused_and_start_repairs_the_stream(client: InferenceServerClient) -> None:
    infer(client, 31, 0)
    with pytest.raises(InferenceServerException, match="expected chunk 1 and got chunk 2"):
        infer(client, 31, 2)
    assert_stream_works(client, 31)


def test_repeated_chunk_is_refused(client: InferenceServerClient) -> None:
    infer(client, 32, 0)
    infer(client, 32, 1)
    with pytest.raises(InferenceServerException, match="expected chunk 2 and got chunk 1"):
        infer(client, 32, 1)
    close(client, 32)


def test_second_start_begins_afresh(client: InferenceServerClient) -> None:
    infer(client, 33, 0)
    infer(client, 33, 1)
    assert_stream_works(client, 33)


def test_unknown_and_ended_streams_are_refused(client: InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="must specify the START flag"):
        infer(client, 34, 1)
    infer(client, 34, 0, end=True)
    with pytest.raises(InferenceServerException, match="must specify the START flag"):
        infer(client, 34, 1, end=True)


def test_stream_without_id_is_refused(client: InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="non-zero or non-empty correlation ID"):
        infer(client, 0, 0)


WRONG = {
    "frame count": ({"pixels": frames(1)}, r"input frames is uint8 \[1, 24, 16, 16, 3\], this chunk takes"),
    "frame size": ({"pixels": np.zeros((1, 33, 32, 16, 3), np.uint8)}, "unexpected shape"),
    "dtype": ({"pixels": frames(0).astype(np.float32)}, "data-type"),
    "prompt": ({"prompt": b"\xff\xfe"}, "not valid UTF-8"),
    "blank prompt": ({"prompt": b" "}, "the prompt is empty"),
    "chunk type": ({"chunk": "0"}, "integer request parameter `chunk`"),
    "seed": ({"seed": -4}, "parameter `seed` is -4"),
    "close": ({"close": True}, "on a request with START and END"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_request_is_refused_in_a_sentence(client: InferenceServerClient, what: str) -> None:
    arguments, words = WRONG[what]
    with pytest.raises(InferenceServerException, match=words):
        infer(client, 35, 0, **arguments)
    close(client, 35)
    assert_stream_works(client, 36)


def test_empty_prompt_tensor_does_no_harm(client: InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException):
        infer(client, 37, 0, prompt=b"")
    close(client, 37)
    assert_stream_works(client, 38)


def test_stream_beyond_the_position_table_is_refused(client: InferenceServerClient) -> None:
    for index in range(CHUNKS):
        infer(client, 39, index)
    with pytest.raises(InferenceServerException, match="beyond the longest stream this model can hold, 5 chunks"):
        infer(client, 39, CHUNKS)
    close(client, 39)


def test_close_frees_slots_at_once(client: InferenceServerClient) -> None:
    for round_ in range(3):
        for slot in range(2):
            infer(client, 100 + 2 * round_ + slot, 0, timeout=5_000_000)
        for slot in range(2):
            answer = close(client, 100 + 2 * round_ + slot)
            assert (answer.shape, answer.max()) == ((1, 1, SIZE, SIZE, 3), 0)


def test_surplus_stream_is_refused_after_its_timeout(client: InferenceServerClient) -> None:
    infer(client, 41, 0)
    infer(client, 42, 0)
    with pytest.raises(InferenceServerException, match="timeout of the corresponding sequence has been expired"):
        infer(client, 43, 0, timeout=300_000)
    for stream in (41, 42):
        np.testing.assert_array_equal(infer(client, stream, 1, end=True), 255 - frames(1))
    assert_stream_works(client, 44)


def test_metrics_count_live_streams_of_each_stage(server: TritonServer, client: InferenceServerClient) -> None:
    infer(client, 51, 0)
    text = urllib.request.urlopen(server.metrics_url, timeout=10).read().decode()
    for stage in ("vae_encoder", "denoiser", "vae_decoder"):
        assert f'sana_streams_live{{stage="{stage}"}} 1' in text
        assert f'sana_chunk_seconds_count{{stage="{stage}"}}' in text
    close(client, 51)


def test_canary_leaves_nothing_behind(server: TritonServer, repository: Path) -> None:
    canary(server.grpc_url, Manifest.read(repository))
    text = urllib.request.urlopen(server.metrics_url, timeout=10).read().decode()
    assert 'sana_streams_live{stage="denoiser"} 0' in text


def leftovers(server: TritonServer, region: str) -> list[str]:
    mine = [process.name() for process in psutil.Process().children(recursive=True) if "triton" in process.name()]
    return mine + [path.name for path in SHARED_MEMORY.glob(f"{region}*")]


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
